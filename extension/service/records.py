"""Small JSON files that may be missing, half-written or somebody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.disk import reading
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read."""
    try:
        return reading.read_json(path)
    except UserError:
        return {}


def receipt_of(run: RunFolder) -> dict[str, Any]:
    """A run's receipt; empty where it cannot be read."""
    try:
        return read_receipt(run)
    except (OSError, UserError):
        return {}
