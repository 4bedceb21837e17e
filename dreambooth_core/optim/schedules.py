"""Learning rate schedules: a factor as a pure function of the step. Standard library only.

There is nothing to save or restore, and a run that is resumed with other settings goes on from
the right place. Names and formulas are those of ``diffusers.optimization``.
"""

from __future__ import annotations

import math

from dreambooth_core.errors import UserError
from dreambooth_core.optim.options import OptimOptions
from dreambooth_core.optim.table import OPTIMIZERS

MOST = 1e6
"""The largest factor of a rule."""


class Schedule:
    """The factor of the learning rate at each optimizer step.

    Schedule-free optimizers do their warm-up themselves, so theirs is constant.

    Args:
        options: name the schedule.
        total: optimizer steps of the whole run.

    Raises:
        UserError: ``step_rules`` that cannot be read.
    """

    def __init__(self, options: OptimOptions, total: int) -> None:
        self.options, self.total = options, total
        averages = OPTIMIZERS[options.optimizer].averages
        self.name = "constant" if averages else options.lr_scheduler
        if self.name == "piecewise_constant":
            self.rules, self.last_factor = parse_rules(options.step_rules)

    def factor(self, step: int, rate: float = 1.0) -> float:
        """Factor for the optimizer step number ``step``, counted from 0.

        ``rate`` is the group's learning rate, which ``polynomial`` needs to end at its final one.
        """
        options, name, warmup = self.options, self.name, self.options.lr_warmup_steps
        if name == "piecewise_constant":
            return next((f for border, f in self.rules if step < border), self.last_factor)
        if name == "constant":
            return 1.0
        if step < warmup:
            return step / max(1, warmup)
        if name == "constant_with_warmup":
            return 1.0
        rest, cycles = max(1, self.total - warmup), options.lr_num_cycles
        progress = (step - warmup) / rest
        if name == "linear":
            return max(0.0, (self.total - step) / rest)
        if name == "cosine":
            waves = 0.5 if cycles is None else cycles
            return max(0.0, 0.5 * (1.0 + math.cos(math.pi * waves * 2.0 * progress)))
        if name == "cosine_with_restarts":
            restarts = 1.0 if cycles is None else cycles
            wave = 0.5 * (1.0 + math.cos(math.pi * ((restarts * progress) % 1.0)))
            return 0.0 if progress >= 1.0 else max(0.0, wave)
        floor = min(1.0, options.final_learning_rate / rate) if rate > 0 else 0.0
        return float((1.0 - floor) * max(0.0, 1.0 - progress) ** options.lr_power + floor)


def parse_rules(text: str) -> tuple[tuple[tuple[int, float], ...], float]:
    """Reads ``"1:10,0.1:20,0.01"`` into ``(((10, 1.0), (20, 0.1)), 0.01)``.

    Raises:
        UserError: it is anything else.
    """
    try:
        *parts, last = text.split(",")
        pairs = [part.split(":") for part in parts]
        rules = sorted((int(step), float(factor)) for factor, step in pairs)
        factors = [*(factor for _, factor in rules), float(last)]
        if any(step < 1 for step, _ in rules) or not all(0 <= f <= MOST for f in factors):
            raise ValueError("steps are counted from 1, and factors have a range")
        return tuple(rules), float(last)
    except ValueError as error:
        raise UserError(
            f"the step rules {text!r} cannot be read",
            where="optim.step_rules",
            do='Write factor:until_step pairs and a last factor, such as "1:100,0.1:200,0.01".',
        ) from error
