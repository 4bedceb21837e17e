"""A run is fitted into its budget of memory, and one that ran out of it gets advice."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from dreambooth_core.devices import processor_computes_bf16
from dreambooth_core.errors import FAILURES, TrainingFailed, UserError
from dreambooth_core.families.components import Configs
from dreambooth_core.formats.storage import read_header
from dreambooth_core.memory.budget import (
    DROPS,
    SMALLER,
    USABLE,
    Taken,
    changed_config,
    measures_for,
    reduced,
)
from dreambooth_core.memory.measure import amount, room
from dreambooth_core.memory.needs import (
    Needs,
    Planner,
    device_kind,
    device_room,
    locate_base,
)
from dreambooth_core.optim.table import OPTIMIZERS
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.combinations import Asked, refuse, refuse_settings
from dreambooth_core.options.memory import AUTO

log = logging.getLogger(__name__)

WRONG = 0.6
"""Where a run that was estimated to fit did not, cheaper settings aim at this share of it."""

LESS = 0.95
"""The share of what a run needs that a setting must come down to, to be worth its price."""

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "alloc failed")
"""What allocators say in a plain ``RuntimeError``."""


DENOISERS = ("transformer", "unet")
"""Where a folder in diffusers' layout has its denoiser."""

FP8 = "F8_"
"""How safetensors' names of 8-bit floats begin."""


@dataclass(frozen=True)
class Fit:
    """A configuration that was fitted into a budget."""

    config: TrainConfig
    budget: int | None = None
    """Bytes; None where there was nothing to fit into."""
    device: str = ""
    needs: Needs | None = None
    taken: tuple[Taken, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the estimate is within the budget's usable part."""
        return self.budget is None or self.needs is None or self.needs.peak <= usable(self.budget)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for reports and the receipt; empty where there was no budget."""
        if self.budget is None or self.needs is None:
            return {}
        return {
            "budget_bytes": self.budget,
            "device": self.device,
            "estimated_bytes": self.needs.peak,
            "fits": self.fits,
            "measures": [each.as_dict() for each in self.taken],
        }


def usable(budget: int) -> int:
    """Bytes that an estimate may reach."""
    return int(budget * USABLE)


def fit(
    config: TrainConfig,
    by_hand: Collection[str] = (),
    *,
    configs: Configs | None = None,
    elsewhere: bool = False,
) -> Fit:
    """Fits a run into ``memory.budget``; ``auto`` is what the GPU has free, and nothing on a CPU.
    A preset's bf16 becomes fp32 on a processor that has no instructions for it.

    Args:
        config: the run.
        by_hand: dotted keys that a person set, which stay as they are.
        configs: of the base's networks; read from the base if None.
        elsewhere: the run will be in another process, which may see a GPU that this one does not.

    Raises:
        UserError: it does not fit into a size that was named, or the base cannot be read.
    """
    refuse_settings(config)
    if config.memory.stream.strip().lower() == AUTO:
        by_hand = set(by_hand) - {"memory.stream"}
    limit = budget = config.memory.limit
    device = device_kind(config.run.device)
    if device == "cpu" and not (elsewhere and config.run.device == "auto" and _knows_gpus()):
        config = _for_processor(config, by_hand)
    if budget is None:
        room = None if device == "cpu" else device_room(device)
        if room is None:
            return Fit(config)
        budget = room.free
    elif elsewhere and config.run.device == "auto":
        device = "cuda"  # a budget is a GPU's
    planner = Planner(config, configs, device=device)
    taken = cheaper(planner, usable(budget), by_hand=by_hand, smaller=False)
    for each in taken:
        config = changed_config(config, each.changes)
    needs = taken[-1].needs if taken else planner.needs()
    found = Fit(config, budget, device, needs, tuple(taken))
    if not found.fits:
        ways = cheaper(Planner(config, configs, device=device), usable(budget))
        error = UserError(
            f"the run does not fit into {amount(budget)}: it needs about {amount(needs.peak)} and "
            "a margin",
            where="memory.budget",
            do=_in_words(ways),
        )
        if limit is not None:
            raise error
        log.warning("%s", error.line)
    return found


def _knows_gpus() -> bool:
    """Whether this PyTorch could compute on a GPU that only another process sees. One that was
    built for processors alone never does."""
    return any(getattr(torch.version, name, None) for name in ("cuda", "hip", "xpu"))


def _for_processor(config: TrainConfig, by_hand: Collection[str]) -> TrainConfig:
    """In fp32 where a preset asked for bf16, which is for GPUs, and the processor has none."""
    key = "run.mixed_precision"
    if config.run.mixed_precision != "bf16" or key in by_hand or processor_computes_bf16():
        return config
    log.info("this processor computes faster in fp32 than in bf16")
    return changed_config(config, {key: "no"})


def _is_in_fp8(config: TrainConfig) -> bool:
    """Whether most numbers of the base's denoiser, or of the one file that it lies in, are 8-bit
    floats. False too where there is nothing to read or nothing that can be."""
    eight = every = 0
    try:
        path = locate_base(config)
        folders = [path / name for name in DENOISERS]
        inside = [file for folder in folders for file in folder.glob("*.safetensors")]
        for file in [path] if path.is_file() else inside:
            for tensor in read_header(file).tensors.values():
                numbers = math.prod(tensor.shape)
                every += numbers
                eight += numbers if tensor.dtype.startswith(FP8) else 0
    except (UserError, OSError):  # whoever loads it says so
        return False
    return 2 * eight > every


def can_run(config: TrainConfig, device: str) -> bool:
    """Whether settings go together, with the packages and the device that are here."""
    if device == "cpu" and config.memory.share > 0:
        return False  # it is all one memory
    optimizer = OPTIMIZERS[config.optim.optimizer]
    wanted = optimizer.package == "bitsandbytes" or config.memory.quantize == "nf4"
    if wanted and (device == "mps" or importlib.util.find_spec("bitsandbytes") is None):
        return False
    here = device == "cuda" and torch.cuda.is_available()
    if here and "bf16" in config.run.mixed_precision and not torch.cuda.is_bf16_supported():
        return False
    return not refuse(Asked(config, device))


def cheaper(
    planner: Planner, limit: int, *, by_hand: Collection[str] = (), smaller: bool = True
) -> list[Taken]:
    """What to change so that a run fits into ``limit`` bytes, what costs least first.

    Changes that would not help are left out. The last one fits, if any does; none is made where
    the run fits as it is.

    Args:
        by_hand: dotted keys that stay.
        smaller: whether images may become smaller too.
    """
    config, device = planner.config, planner.device
    bf16 = device != "cpu" or processor_computes_bf16()
    own = measures_for(fp8=_is_in_fp8(config), bf16=bf16)
    measures = (*own, *DROPS, *(SMALLER if smaller else ()))
    allowed = partial(can_run, device=device)
    return reduced(planner, limit, measures, by_hand=by_hand, allowed=allowed)


def _in_words(ways: list[Taken]) -> str | None:
    steps = "; ".join(f"{way.words} ({amount(way.needs.peak)})" for way in ways)
    return f"Cheaper settings, each on top of those before: {steps}." if steps else None


def next_measure(config: TrainConfig, device: torch.device, configs: Configs | None = None) -> str:
    """A sentence that names the cheapest setting with which a run would need less memory; empty
    where there is none, or where that could not be worked out."""
    try:
        planner = Planner(config, configs, device=device.type)
        now = planner.needs().peak
        ways = cheaper(planner, int(LESS * now))
    except FAILURES:
        log.exception("no advice could be worked out")
        return ""
    if not ways:
        return ""
    saved = amount(now - ways[0].needs.peak)
    return f"A run with {ways[0].words} would need {saved} less ({ways[0].measure.cost})."


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the computer had no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _SAID)


def out_of_memory(
    config: TrainConfig, device: torch.device, last_saved: int | None
) -> TrainingFailed:
    """The error for a run that ran out of memory: what is safe, and what would fit, in order.

    Args:
        config: the run.
        device: where it ran.
        last_saved: step of the latest checkpoint, if there is any.
    """
    where = "this computer" if device.type == "cpu" else "the GPU"
    saved = "nothing was saved yet" if last_saved is None else f"step {last_saved} is saved"
    total = room(device).total
    try:
        planner = Planner(config, device=device.type)
        peak = planner.needs().peak
        # Where the estimate says that it fits, it is wrong, or others use the device.
        advice = _in_words(cheaper(planner, min(usable(total), int(peak * WRONG))))
        estimated = f", and the run needs about {amount(peak)}"
    except FAILURES:
        log.exception("no advice could be worked out")
        advice, estimated = None, ""
    resume = " Then resume with run.resume=latest." if last_saved is not None else ""
    return TrainingFailed(
        f"out of memory: {where} has {amount(total)}{estimated}; {saved}",
        do=(advice or "Close other programs, or take a smaller base.") + resume,
    )
