"""Cheaper settings: what to change, in which order, until a run fits into the memory there is."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dreambooth_core.errors import TrainingFailed
from dreambooth_core.families.base import Configs
from dreambooth_core.memory.measure import amount, room
from dreambooth_core.methods.table import METHODS
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.needs import Needs, Planner

log = logging.getLogger(__name__)

Changes = dict[str, Any]
"""New values by dotted keys."""

USABLE = 0.92
"""The share of a device's memory that a run can count on: the screen, other programs and
fragmentation take the rest."""

WRONG = 0.6
"""Where a run that was estimated to fit did not, cheaper settings aim at this share of it."""

SIZES = (768, 512, 384)
"""Resolutions to go down to."""

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "alloc failed")
"""What allocators say in a plain ``RuntimeError``."""


@dataclass(frozen=True)
class Suggestion:
    """Changes on top of those before, and what the run needs with all of them."""

    changes: Changes
    needs: Needs

    @property
    def words(self) -> str:
        """As one would type them."""
        return " ".join(f"{key}={_text(value)}" for key, value in self.changes.items())


def cheaper(
    config: TrainConfig,
    limit: int,
    *,
    configs: Configs | None = None,
    device: str | None = None,
    ladder: Callable[[TrainConfig], Iterator[Changes]] | None = None,
) -> list[Suggestion]:
    """What to change so that the run fits into ``limit`` bytes, what costs least first.

    Changes that would not help are left out. The last suggestion fits, if any does; none is
    made where the run fits as it is.

    Args:
        config: the run.
        limit: bytes.
        configs: of the base's networks; read from the base if None.
        device: see :class:`Planner`.
        ladder: other changes to try.

    Raises:
        UserError: the base cannot be read.
    """
    planner = Planner(config, configs, device=device)
    needs = planner.needs()
    found: list[Suggestion] = []
    now = config = planner.config
    for changes in (ladder or steps_down)(config):
        if needs.peak <= limit:
            break
        changed = changed_config(now, changes)
        if changed == now:
            continue
        planner = planner.changed(changed)
        result = planner.needs()
        if not _helps(result, needs):
            continue
        changes = {key: value for key, value in changes.items() if _get(now, key) != value}
        found.append(Suggestion(changes, result))
        now, needs = changed, result
    return found


def _helps(after: Needs, before: Needs) -> bool:
    """Whether any of the phases needs less, by more than a rounding error."""
    pairs = (
        (after.training.peak, before.training.peak),
        (after.encoding, before.encoding),
        (after.class_images, before.class_images),
    )
    return any(a < 0.98 * b for a, b in pairs)


def steps_down(config: TrainConfig) -> Iterator[Changes]:
    """Every change that saves memory, what costs least first."""
    yield from without_loss(config)
    yield from with_loss(config)


def without_loss(config: TrainConfig) -> Iterator[Changes]:
    """Changes that cost time at most: what is learned stays nearly the same."""
    full = METHODS[config.method.kind].trains_base
    if config.run.mixed_precision == "no":
        yield {"run.mixed_precision": "bf16"}
    if config.optim.ema.enabled:
        yield {"optim.ema.on_cpu": True}
    if full and config.optim.optimizer in ("adamw", "adam"):
        yield {"optim.optimizer": "adamw8bit"}
    yield {"memory.gradient_checkpointing": True}
    if not full and config.optim.optimizer in ("adamw", "adam"):
        yield {"optim.optimizer": "adamw8bit"}
    if config.prior.enabled:
        yield {"prior.batch_size": 1}
    if config.run.batch_size > 1:
        together = config.run.batch_size * config.run.gradient_accumulation_steps
        yield {"run.batch_size": 1, "run.gradient_accumulation_steps": together}


def with_loss(config: TrainConfig) -> Iterator[Changes]:
    """Changes that also change a little, or a good deal, of what is learned."""
    full = METHODS[config.method.kind].trains_base
    if full and config.run.mixed_precision != "fp16":
        yield {
            "optim.fused_backward_pass": True,
            "optim.max_grad_norm": 0.0,
            "run.batch_size": 1,
            "run.gradient_accumulation_steps": 1,
        }
    if not full:
        yield {"memory.quantize": "nf4"}
    if config.method.train_text_encoder and config.method.train_denoiser:
        yield {"method.train_text_encoder": False}
    if full:
        yield {"optim.optimizer": "adafactor"}
        if config.run.mixed_precision != "fp16":
            yield {"run.mixed_precision": "full_bf16", "optim.stochastic_rounding": True}
    if config.prior.enabled:
        yield {"prior.enabled": False}
    now = config.data.resolution
    for size in SIZES:
        if now and size < now and config.data.height is None and config.data.width is None:
            yield {"data.resolution": size}


def changed_config(config: TrainConfig, changes: Changes) -> TrainConfig:
    """A copy of the configuration with new values."""
    changed = copy.deepcopy(config)
    for key, value in changes.items():
        *sections, name = key.split(".")
        target: Any = changed
        for section in sections:
            target = getattr(target, section)
        setattr(target, name, value)
    return changed


def _get(config: TrainConfig, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the computer had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SAID)


def out_of_memory(
    config: TrainConfig,
    device: torch.device,
    last_saved: int | None,
    configs: Configs | None = None,
) -> TrainingFailed:
    """The error for a run that ran out of memory: what is safe, and what would fit, in order.

    Args:
        config: the run.
        device: where it ran.
        last_saved: step of the latest checkpoint, if there is any.
        configs: of the base's networks; read from the base if None.
    """
    where = "this computer" if device.type == "cpu" else "the GPU"
    saved = "nothing was saved yet" if last_saved is None else f"step {last_saved} is saved"
    total = room(device).total
    try:
        needs = Planner(config, configs, device=device.type).needs()
        # Where the estimate says that it fits, it is wrong, or others use the device.
        limit = min(int(total * USABLE), int(needs.peak * WRONG))
        ways = cheaper(config, limit, configs=configs, device=device.type)
        estimated = f", and the run needs about {amount(needs.peak)}"
    except Exception:
        log.exception("no advice could be worked out")
        ways, estimated = [], ""
    steps = "; ".join(f"{way.words} ({amount(way.needs.peak)})" for way in ways)
    advice = f"Cheaper settings, each on top of those before: {steps}." if steps else ""
    resume = " Then go on with run.resume=latest." if last_saved is not None else ""
    return TrainingFailed(
        f"out of memory: {where} has {amount(total)}{estimated}; {saved}",
        do=(advice or "Close other programs, or take a smaller base.") + resume,
    )
