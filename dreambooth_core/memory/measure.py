"""How much memory was really used: of a GPU by its allocator, of the process by the system."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

GIB = 1024**3
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
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return Room(int(free), int(total))
    if device.type == "xpu" and hasattr(torch.xpu, "mem_get_info"):
        free, total = torch.xpu.mem_get_info(device)
        return Room(int(free), int(total))
    import psutil

    memory = psutil.virtual_memory()
    return Room(int(memory.available), int(memory.total))


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
    """Looks at the resident memory every few milliseconds, on a thread of its own."""

    def __init__(self, interval: float = 0.002) -> None:
        self._highest = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(interval,), daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The highest value seen."""
        self._done.set()
        self._thread.join()
        return max(self._highest, resident())

    def _watch(self, interval: float) -> None:
        while not self._done.wait(interval):
            self._highest = max(self._highest, resident())
