"""Memory while a run goes on: the first step's peak beside the estimate, and signs of spilling."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dreambooth_core.families.base import Configs
from dreambooth_core.memory.measure import Peak, peak_memory, room
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.needs import Needs, Planner

log = logging.getLogger(__name__)

NEARLY_FULL = 0.03
"""Share of the device's memory that is free when it counts as full."""
TIMES_SLOWER = 5.0
"""Against the median of the steps before."""
STEPS_BEFORE = 5
"""Steps before any is called slow; the first ones of a run vary."""


class MemoryWatch:
    """Measures the first step, and notices a GPU whose memory is full.

    Windows' drivers then move memory into the computer's instead of failing, and steps take many
    times longer; elsewhere whatever comes next, a preview or another program, finds no room.

    Args:
        device: the run's.
        advice: a sentence that names the next cheaper setting; asked at most once.
        windows: whether the driver is Windows'.
    """

    def __init__(
        self,
        device: torch.device,
        advice: Callable[[], str] = str,
        *,
        windows: bool = os.name == "nt",
    ) -> None:
        self.device = device
        self.peak: Peak | None = None
        self._advice, self._windows = advice, windows
        self._seconds: list[float] = []
        self._told = False
        self._measured_told = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one optimizer step. Only the first is measured."""
        if self.peak is not None:
            yield
            return
        with peak_memory(self.device) as peak:
            yield
        self.peak = peak

    def told(self) -> dict[str, Any]:
        """The measurement as details of the first event that asks; then and before, nothing."""
        if self.peak is None or self._measured_told:
            return {}
        self._measured_told = True
        found: dict[str, Any] = {"measured_bytes": self.peak.peak, "measured_on": self.peak.on}
        return found | ({"reserved_bytes": self.peak.reserved} if self.peak.reserved else {})

    def alarm(self, seconds: float) -> str | None:
        """A warning, once in a run, if a step of that length looks like spilling, or if the GPU is
        all but full when the first one is reported: a run can spill from its beginning."""
        if self.device.type != "cuda" or self._told:
            return None
        before, self._seconds = self._seconds, [*self._seconds[-49:], seconds]
        usual = statistics.median(before or [seconds])
        slow = len(before) >= STEPS_BEFORE and seconds >= TIMES_SLOWER * usual
        if before and not slow:
            return None
        now = room(self.device)
        # What torch's allocator holds and does not need is given back when that is wanted.
        spare = self.peak.reserved - self.peak.peak if self.peak and self.peak.reserved else 0
        if now.free + spare > NEARLY_FULL * now.total:
            return None
        self._told = True
        full = "the GPU's memory is full"
        if slow:
            times = f"{seconds / usual:.0f} times longer than usual"
            full = f"this step took {seconds:.1f} s, {times}, and {full}"
        follows = (
            "Windows uses RAM in its place then, which is many times slower"
            if self._windows
            else "a preview or another program may find no room"
        )
        panel = (
            ', or forbid that in NVIDIA\'s control panel ("CUDA - Sysmem Fallback Policy")'
            if self._windows
            else ""
        )
        said = f"{full}: {follows}. Close other programs{panel}. {self._advice()}"
        return said.strip()


def estimate_of(config: TrainConfig, configs: Configs, device: torch.device) -> Needs | None:
    """What the run is estimated to need; None where that fails: no reason not to train."""
    try:
        return Planner(config, configs, device=device.type).needs()
    except Exception:
        log.exception("the memory could not be estimated")
        return None
