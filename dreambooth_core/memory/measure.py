"""Memory as it really is: what a run used, what a device has, and signs that it is full."""

from __future__ import annotations

import os
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.options.memory import GIB

NEARLY_FULL = 0.03
"""Share of the device's memory that is free when it counts as full."""
TIMES_SLOWER = 5.0
"""Against the median of the steps before."""
STEPS_BEFORE = 5
"""Steps before any is called slow; the first ones of a run vary."""
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass
class Peak:
    """Filled in when ``peak_memory`` ends. Bytes."""

    before: int = 0
    """In use at the beginning."""
    peak: int = 0
    """The most that was in use at any time."""
    reserved: int = 0
    """GPUs: the most that the allocator held, which other programs cannot have."""
    on: str = "process"
    """``cuda`` (the GPU's memory) or ``process`` (resident memory of this process)."""

    @property
    def extra(self) -> int:
        """The peak over the beginning."""
        return max(0, self.peak - self.before)


@dataclass(frozen=True)
class Room:
    """Memory of a device, in bytes."""

    free: int
    total: int


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measures the peak between entering and leaving.

    On CUDA the allocator's own statistics; elsewhere the resident memory of the process, whose
    peak Linux and Windows keep, and which is sampled on other systems.
    """
    result = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        result.on, result.before = "cuda", torch.cuda.memory_allocated(device)
        try:
            yield result
        finally:
            torch.cuda.synchronize(device)
            result.peak = torch.cuda.max_memory_allocated(device)
            result.reserved = torch.cuda.max_memory_reserved(device)
        return
    result.before = resident()
    resettable = _reset_system_peak()
    sampler = None if resettable else _Sampler()
    try:
        yield result
    finally:
        result.peak = _system_peak() if sampler is None else sampler.stop()
        result.peak = max(result.peak, result.before)


def amount(size: int) -> str:
    """Bytes for people, in GiB or MiB."""
    return f"{size / GIB:.2f} GiB" if size >= GIB / 100 else f"{size / 1024**2:.2f} MiB"


def resident() -> int:
    """Resident memory of this process, in bytes."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def room(device: torch.device) -> Room:
    """Free and total memory of a device: of the GPU on CUDA and XPU, of the computer elsewhere."""
    of_gpu = getattr(getattr(torch, device.type, None), "mem_get_info", None)
    if of_gpu is not None:
        free, total = of_gpu(device)
        return Room(int(free), int(total))
    import psutil

    memory = psutil.virtual_memory()
    return Room(int(memory.available), int(memory.total))


@dataclass
class MemoryWatch:
    """Measures the first step, and notices a GPU whose memory is full.

    Windows' drivers then move memory into the computer's instead of failing, and steps take many
    times longer; elsewhere whatever comes next, a preview or another program, finds no room.
    """

    device: torch.device
    advice: Callable[[], str] = str
    """A sentence that names the next cheaper setting; asked at most once."""
    windows: bool = os.name == "nt"
    """Whether the driver is Windows'."""
    estimate: Callable[[], int | None] = lambda: None
    """Bytes that were expected, or None: asked when the first measurement is told, since no step
    has to wait for it."""
    peak: Peak | None = None
    _seconds: list[float] = field(default_factory=list)
    _told: bool = False
    _measured_told: bool = False

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
        if self.peak.reserved:
            found["reserved_bytes"] = self.peak.reserved
        if (expected := self.estimate()) is not None:
            found["estimated_bytes"] = expected
        return found

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
        follows, panel = "a preview or another program may find no room", ""
        if self.windows:
            follows = "Windows uses RAM in its place then, which is many times slower"
            panel = ', or forbid that in NVIDIA\'s control panel ("CUDA - Sysmem Fallback Policy")'
        return f"{full}: {follows}. Close other programs{panel}. {self.advice()}".strip()


def _reset_system_peak() -> bool:
    """Whether the system's peak of this process could be set back (Linux, if permitted)."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _system_peak() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resident()


class _Sampler:
    """Looks at the resident memory every two milliseconds, on a thread of its own."""

    def __init__(self) -> None:
        self._highest = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The highest value seen."""
        self._done.set()
        self._thread.join()
        return max(self._highest, resident())

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, resident())
