"""How long torch.compile takes, by its own clock."""

from __future__ import annotations

import logging
from typing import Any

log = logging.getLogger(__name__)


class Compiling:
    """What compiling has cost a run so far. A process may have done others before.

    Blocks are compiled where they are first used, forward and backward: nearly all of it lies in
    the first step, more where images of another size or batch come for the first time. What an
    earlier run left in the compiler's own cache on the disk takes no time again.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._began = self._now()
        self.seconds = self._told = 0.0

    def lap(self) -> float:
        """Seconds since the last time that this was called."""
        new = self._now() - self._began - self.seconds
        self.seconds += new
        return new

    def told(self) -> dict[str, Any]:
        """All seconds so far, as a detail of an event, if they are more than was told before."""
        if self.seconds == self._told:
            return {}
        self._told = self.seconds
        log.info("compiling took %.1f s so far", self.seconds)
        return {"compile_seconds": round(self.seconds, 1)}

    def _now(self) -> float:
        if not self._wanted:
            return 0.0
        from torch._dynamo.utils import calculate_time_spent

        return calculate_time_spent().get("total_wall_time", 0.0)
