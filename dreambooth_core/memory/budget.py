"""Fits a run into a budget of memory: an ordered list of measures, the cheapest in speed first.

A measure changes settings, and nothing that a person set by hand. They are taken in order until
the estimate fits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from dreambooth_core.memory.needs import Needs, Planner
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig

USABLE = 0.92
"""The share of a budget that the estimate may reach: the screen, other programs, fragmentation
and the estimate's own error take the rest."""

Changes = dict[str, Any]
"""New values by dotted keys."""


@dataclass(frozen=True)
class Measure:
    """One way to need less memory."""

    name: str
    cost: str
    """What it costs, in words."""
    changes: Callable[[TrainConfig], Changes]
    """Empty where it does not apply."""


@dataclass(frozen=True)
class Taken:
    """A measure that was taken, on top of those before."""

    measure: Measure
    changes: Changes
    """Only what is new."""
    needs: Needs
    """With it."""
    saves: int
    """Bytes of the run's peak; 0 where it only helps together with those that follow."""

    @property
    def words(self) -> str:
        """Its changes as one would type them."""
        said = {k: str(v).lower() if isinstance(v, bool) else v for k, v in self.changes.items()}
        return " ".join(f"{key}={value}" for key, value in said.items())

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "measure": self.measure.name,
            "settings": self.words,
            "saves": self.saves,
            "cost": self.measure.cost,
            "peak": self.needs.peak,
        }


def reduced(
    planner: Planner,
    limit: int,
    measures: Sequence[Measure],
    *,
    by_hand: Collection[str],
    allowed: Callable[[TrainConfig], bool],
) -> list[Taken]:
    """The measures after which a run fits into ``limit`` bytes; none where it does already.

    Where nothing makes it fit, all that help.

    Args:
        planner: of the run as it is.
        limit: of the estimate, in bytes.
        measures: in the order in which they are tried.
        by_hand: dotted keys that stay.
        allowed: whether a configuration can run.
    """
    needs, taken = planner.needs(), list[Taken]()
    for measure in measures:
        if needs.peak <= limit:
            break
        now = planner.config
        new = {k: v for k, v in measure.changes(now).items() if attrgetter(k)(now) != v}
        if not new or any(key in by_hand for key in new):
            continue
        changed = changed_config(now, new)
        if not allowed(changed):
            continue
        after = planner.changed(changed)
        result = after.needs()
        if not _helps(result, needs):
            continue
        taken = [each for each in taken if not each.changes.keys() <= new.keys()]
        taken.append(Taken(measure, new, result, max(0, needs.peak - result.peak)))
        planner, needs = after, result
    return taken


def _helps(after: Needs, before: Needs) -> bool:
    """Whether any of the phases needs less, by more than a rounding error."""
    pairs = (
        (after.training.peak, before.training.peak),
        (after.encoding, before.encoding),
        (after.class_images, before.class_images),
    )
    return any(a < 0.98 * b for a, b in pairs)


def changed_config(config: TrainConfig, changes: Changes) -> TrainConfig:
    """A copy of the configuration with new values."""
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        setattr(attrgetter(section)(changed), name, value)
    return changed


# --- the measures ---------------------------------------------------------------------------------
def _full(config: TrainConfig) -> bool:
    return METHODS[config.method.kind].trains_base


def _adam(config: TrainConfig) -> bool:
    return config.optim.optimizer in ("adamw", "adam")


def _one_at_a_time(config: TrainConfig) -> Changes:
    together = config.run.batch_size * config.run.gradient_accumulation_steps
    return {"run.batch_size": 1, "run.gradient_accumulation_steps": together}


def _fused(config: TrainConfig) -> Changes:
    if not _full(config) or config.run.mixed_precision == "fp16":
        return {}
    return {
        "optim.fused_backward_pass": True,
        "optim.max_grad_norm": 0.0,
        "run.batch_size": 1,
        "run.gradient_accumulation_steps": 1,
    }


def _streamed(share: float) -> Measure:
    return Measure(
        "all blocks in RAM" if share == 1 else f"{share:.0%} of the blocks in RAM",
        "steps wait for the bus; nothing that is learned changes",
        lambda c: {"memory.stream": str(share)} if c.memory.share < share else {},
    )


MEASURES: tuple[Measure, ...] = (
    Measure(
        "cached latents",
        "nothing: steps are faster",
        lambda c: {"data.cache": "memory"} if c.data.cache == "none" else {},
    ),
    Measure(
        "class images one at a time",
        "generating them takes longer",
        lambda c: {"prior.batch_size": 1} if c.prior.makes_images else {},
    ),
    Measure(
        "bf16",
        "computes in half precision; steps are faster on a GPU",
        lambda c: {"run.mixed_precision": "bf16"} if c.run.mixed_precision == "no" else {},
    ),
    Measure(
        "fp16",
        "computes in half precision; steps are faster on a GPU",
        lambda c: {"run.mixed_precision": "fp16"} if c.run.mixed_precision == "no" else {},
    ),
    Measure(
        "EMA in RAM",
        "a copy to RAM at each update of the average",
        lambda c: {"optim.ema.on_cpu": True} if c.optim.ema.enabled else {},
    ),
    Measure(
        "8-bit optimizer states",
        "the states are slightly less exact",
        lambda c: {"optim.optimizer": "adamw8bit"} if _full(c) and _adam(c) else {},
    ),
    Measure(
        "gradient checkpointing",
        "steps take about a third longer",
        lambda c: {"memory.gradient_checkpointing": True},
    ),
    Measure(
        "8-bit optimizer states",
        "the states are slightly less exact",
        lambda c: {"optim.optimizer": "adamw8bit"} if not _full(c) and _adam(c) else {},
    ),
    Measure("gradient accumulation", "slower steps, the same batch", _one_at_a_time),
    Measure("fused backward pass", "a batch of one, no gradient clipping", _fused),
    Measure(
        "base in 8 bits",
        "the base is slightly less exact, steps are slower",
        lambda c: {"memory.quantize": "int8"} if not _full(c) else {},
    ),
    Measure(
        "base in 4 bits",
        "the base is less exact, steps are slower",
        lambda c: {"memory.quantize": "nf4"} if not _full(c) else {},
    ),
    *(_streamed(share) for share in (0.25, 0.5, 0.75, 1)),
    Measure(
        "Adafactor",
        "another optimizer, which learns a little differently",
        lambda c: {"optim.optimizer": "adafactor"} if _full(c) else {},
    ),
    Measure(
        "weights in bf16",
        "updates are rounded at random",
        lambda c: (
            {"run.mixed_precision": "full_bf16", "optim.stochastic_rounding": True}
            if _full(c) and c.run.mixed_precision != "fp16"
            else {}
        ),
    ),
)
"""Cheap in speed first. What is learned stays nearly the same."""

FP8 = Measure(
    "base in fp8, as in its files",
    "steps are slower; the base stays exactly what its files hold",
    lambda c: {"memory.quantize": "fp8"} if not _full(c) else {},
)


def measures_for(*, fp8: bool = False, bf16: bool = True) -> tuple[Measure, ...]:
    """:data:`MEASURES` for a base and a device.

    Args:
        fp8: the base's files are in 8-bit floats: kept so, they lose nothing, and go before all
            rounding.
        bf16: the device computes in bf16 as fast as in fp32.
    """
    found = []
    for measure in MEASURES:
        if measure.name == "base in 8 bits" and fp8:
            found.append(FP8)
        if measure.name != "bf16" or bf16:
            found.append(measure)
    return tuple(found)


DROPS: tuple[Measure, ...] = (
    Measure(
        "the text encoder is not trained",
        "the subject is learned less closely",
        lambda c: {"method.train_text_encoder": False} if c.method.train_denoiser else {},
    ),
    Measure(
        "no prior preservation",
        "the class may turn into the subject",
        lambda c: {"prior.enabled": False} if c.prior.enabled else {},
    ),
)
"""What a recipe asks for, and what goes where nothing else makes the run fit."""


def _shrunk(side: int, config: TrainConfig) -> Changes:
    data = config.data
    alone = not (data.height or data.width or data.resolutions)
    return {"data.resolution": side} if alone and side < (data.resolution or 0) else {}


SMALLER = tuple(
    Measure(f"images at {side} px", "less detail", partial(_shrunk, side))
    for side in (768, 512, 384)
)
"""Advice alone: a budget never takes it."""
