"""Memory while a run goes on: the first step's peak beside the estimate, and signs of spilling."""

from __future__ import annotations

import logging
import os
import statistics
from collections.abc import Iterator
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
    """Measures the first step, and notices steps that wait for RAM.

    Windows' GPU drivers move memory into the computer's when the GPU's is full, instead of
    failing; steps then take many times longer.
    """

    def __init__(self, device: torch.device, *, windows: bool = os.name == "nt") -> None:
        self.device = device
        self.peak: Peak | None = None
        self._watches = windows and device.type == "cuda"
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

    def spills(self, seconds: float) -> str | None:
        """A warning, once, if a step of that length looks like spilling."""
        if not self._watches or self._told:
            return None
        before, self._seconds = self._seconds, [*self._seconds[-49:], seconds]
        if len(before) < STEPS_BEFORE or seconds < TIMES_SLOWER * statistics.median(before):
            return None
        now = room(self.device)
        if now.free > NEARLY_FULL * now.total:
            return None
        self._told = True
        return (
            f"this step took {seconds:.1f} s, {seconds / statistics.median(before):.0f} times "
            "longer than usual, and the GPU's memory is full: Windows seems to use RAM "
            "in its place. Close other programs, set a smaller memory.budget, or forbid "
            'it in NVIDIA\'s control panel ("CUDA - Sysmem Fallback Policy").'
        )


def estimate_of(config: TrainConfig, configs: Configs, device: torch.device) -> Needs | None:
    """What the run is estimated to need; None where that fails: no reason not to train."""
    try:
        return Planner(config, configs, device=device.type).needs()
    except Exception:
        log.exception("the memory could not be estimated")
        return None
