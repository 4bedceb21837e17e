"""Waiting for what another thread or process does: as long as a busy machine may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 180.0
"""Seconds. Only a test that fails waits so long, so it costs nothing to be generous."""


def until(condition: Callable[[], Any], what: Callable[[], object] = str) -> Any:
    """Waits until something is true, and returns it; ``what`` says what was there instead."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)
    return found
