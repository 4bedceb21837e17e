"""Which attention kernel is the fastest for a run, found out by letting it train with each.

Which one wins depends on the GPU, its libraries' versions, the number of tokens, the size of heads
and the precision, so nothing but a trial at the run's own shapes tells. What was found is kept in a
file and not tried again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.disk import write_text
from dreambooth_core.errors import SaveFailed

log = logging.getLogger(__name__)

SDPA: dict[str, tuple[str, ...]] = {
    "flash": ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"),
    "cudnn": ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"),
    "efficient": ("EFFICIENT_ATTENTION", "MATH"),
}
"""torch's kernels, each with those that stand in where it knows no such shape or mask."""

MORE_MEMORY = 1.05
"""A kernel that takes more than this, of what the most frugal one takes, is no choice."""

_KEPT = 64


@dataclass(frozen=True)
class Cost:
    """What one trial took."""

    seconds: float
    peak: int
    """Bytes of the device."""


@contextmanager
def sdpa_by(name: str) -> Iterator[None]:
    """Inside, torch's attention runs by one of :data:`SDPA` where that can be."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [getattr(SDPBackend, each) for each in SDPA[name]]
    with sdpa_kernel(backends, set_priority=True):
        yield


def fastest(
    trials: Mapping[str, Callable[[], Cost]], file: Path, key: str, what: str = "attention"
) -> str | None:
    """The name of the fastest of the trials that take no more memory than others.

    Args:
        trials: each measures one kernel; one that fails is no choice.
        file: where results are kept.
        key: what they depend on.
        what: is tried, for the log.

    Returns:
        None if all failed.
    """
    known = _read(file)
    found = known.get(key, {}).get("fastest")
    if isinstance(found, str) and found in trials:
        return found
    costs: dict[str, Cost] = {}
    for name, trial in trials.items():
        try:
            costs[name] = trial()
        except (RuntimeError, NotImplementedError, ValueError) as error:  # out of memory is one
            log.info("%s: %s is no choice: %s", what, name, str(error).splitlines()[:1])
    least = min((cost.peak for cost in costs.values()), default=0)
    fit = {name: cost for name, cost in costs.items() if cost.peak <= MORE_MEMORY * least}
    best = min(fit, key=lambda name: fit[name].seconds, default=None)
    told = {name: round(cost.seconds, 5) for name, cost in costs.items()}
    log.info("%s: %s is the fastest of %s", what, best, told)
    if best is not None:
        kept = [*known.items()][-_KEPT + 1 :]
        entry = {"fastest": best, "seconds": told}
        try:
            write_text(file, json.dumps({**dict(kept), key: entry}, indent=1))
        except SaveFailed as error:  # then the next run tries again
            log.info("%s", error.line)
    return best


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict) and _sound(v)}


def _sound(entry: dict[str, Any]) -> bool:
    seconds = entry.get("seconds")
    return isinstance(seconds, dict) and all(
        isinstance(v, float | int) and math.isfinite(v) for v in seconds.values()
    )
