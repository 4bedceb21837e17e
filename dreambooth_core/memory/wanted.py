"""Whether somebody else needs the memory that a process holds only in case it is useful."""

from __future__ import annotations

import gc
import sys
from typing import Any

GROWN = 256 * 1024**2
"""Bytes that others may take on the GPU meanwhile: what a desktop does is not a wish for more."""

LEAST = 0.15
"""The share of the computer's memory that must stay free."""


def has_room(more: int = 0) -> bool:
    """Whether :data:`LEAST` of the RAM stays free with ``more`` bytes taken."""
    try:
        import psutil
    except ImportError:  # an environment that is not whole
        return True
    memory = psutil.virtual_memory()
    return bool(memory.available - more >= LEAST * memory.total)


class MemoryWanted:
    """Asked now and then by a process that waits. On making it, gives back what can be given back.

    True as soon as others have taken more of a GPU than :data:`GROWN` since then (a host has
    begun to load its model), or where less than :data:`LEAST` of the RAM is free.
    """

    def __init__(self) -> None:
        gc.collect()
        # Without a run that has used it torch is not imported, nor a GPU set up, for this.
        torch: Any = sys.modules.get("torch")
        self._cuda = torch.cuda if torch is not None and torch.cuda.is_initialized() else None
        if self._cuda is not None:
            self._cuda.empty_cache()
        self._free = self._on_gpu()

    def __call__(self) -> bool:
        if not has_room():
            return True
        free = self._on_gpu()
        self._free = max(self._free, free)
        return free < self._free - GROWN

    def _on_gpu(self) -> int:
        """Free bytes of the GPU, 0 where none is in use."""
        return int(self._cuda.mem_get_info()[0]) if self._cuda is not None else 0
