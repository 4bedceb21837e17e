"""Learning rate schedules: a factor as a pure function of the step. Standard library only.

There is nothing to save or restore, and a run that is resumed with other settings goes on from
the right place. Names and formulas are those of ``diffusers.optimization``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from dreambooth_core.errors import UserError
from dreambooth_core.optim.options import SCHEDULES, OptimOptions
from dreambooth_core.optim.table import OPTIMIZERS

MOST = 1e6
"""The largest factor of a rule."""


@dataclass(frozen=True)
class Schedule:
    """The factor of the learning rate at each optimizer step."""

    name: str
    total: int
    """Optimizer steps of the whole run."""
    warmup: int = 0
    cycles: float | None = None
    power: float = 1.0
    end: float = 1e-7
    """Learning rate at the end of ``polynomial``."""
    rules: tuple[tuple[int, float], ...] = ()
    """``piecewise_constant``: (first step at which it no longer holds, factor)."""
    last_factor: float = 1.0
    """``piecewise_constant``: the factor after all rules."""

    def factor(self, step: int, rate: float = 1.0) -> float:
        """Factor for the optimizer step number ``step``, counted from 0.

        ``rate`` is the group's learning rate, which ``polynomial`` needs to end at ``end``.
        """
        if self.name == "piecewise_constant":
            return next((f for border, f in self.rules if step < border), self.last_factor)
        if self.name == "constant":
            return 1.0
        if step < self.warmup:
            return step / max(1, self.warmup)
        if self.name == "constant_with_warmup":
            return 1.0
        return _AFTER_WARMUP[self.name](self, step, rate)

    def _progress(self, step: int) -> float:
        return (step - self.warmup) / max(1, self.total - self.warmup)


def _linear(schedule: Schedule, step: int, rate: float) -> float:
    return max(0.0, (schedule.total - step) / max(1, schedule.total - schedule.warmup))


def _cosine(schedule: Schedule, step: int, rate: float) -> float:
    waves = 0.5 if schedule.cycles is None else schedule.cycles
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * waves * 2.0 * schedule._progress(step))))


def _restarts(schedule: Schedule, step: int, rate: float) -> float:
    restarts = 1.0 if schedule.cycles is None else schedule.cycles
    progress = schedule._progress(step)
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((restarts * progress) % 1.0))))


def _polynomial(schedule: Schedule, step: int, rate: float) -> float:
    floor = min(1.0, schedule.end / rate) if rate > 0 else 0.0
    left = max(0.0, 1.0 - schedule._progress(step))
    return float((1.0 - floor) * left**schedule.power + floor)


_AFTER_WARMUP: dict[str, Callable[[Schedule, int, float], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
}


def make_schedule(options: OptimOptions, total_steps: int) -> Schedule:
    """The schedule that the options name, for a run of ``total_steps`` optimizer steps.

    Schedule-free optimizers do their warm-up themselves, so theirs is constant.

    Raises:
        UserError: an unknown name; ``step_rules`` that cannot be read.
    """
    if options.lr_scheduler not in SCHEDULES:
        raise UserError(
            f"schedule {options.lr_scheduler!r} is not known",
            where="optim.lr_scheduler",
            do=f"Known are {', '.join(SCHEDULES)}.",
        )
    if OPTIMIZERS[options.optimizer].averages:
        return Schedule("constant", total_steps)
    rules: tuple[tuple[int, float], ...] = ()
    last = 1.0
    if options.lr_scheduler == "piecewise_constant":
        rules, last = parse_rules(options.step_rules)
    return Schedule(
        name=options.lr_scheduler,
        total=total_steps,
        warmup=options.lr_warmup_steps,
        cycles=options.lr_num_cycles,
        power=options.lr_power,
        end=options.final_learning_rate,
        rules=rules,
        last_factor=last,
    )


def _factor(text: str) -> float:
    value = float(text)
    if not 0 <= value <= MOST:
        raise ValueError(f"{text} is not a factor")
    return value


def parse_rules(text: str) -> tuple[tuple[tuple[int, float], ...], float]:
    """Reads ``"1:10,0.1:20,0.01"`` into ``(((10, 1.0), (20, 0.1)), 0.01)``.

    Raises:
        UserError: it is anything else.
    """
    try:
        *parts, last = text.split(",")
        pairs = [part.split(":") for part in parts]
        rules = sorted((int(step), _factor(factor)) for factor, step in pairs)
        if any(step < 1 for step, _ in rules):
            raise ValueError("steps are counted from 1")
        return tuple(rules), _factor(last)
    except ValueError as error:
        raise UserError(
            f"the step rules {text!r} cannot be read",
            where="optim.step_rules",
            do='Write factor:until_step pairs and a last factor, such as "1:100,0.1:200,0.01".',
        ) from error
