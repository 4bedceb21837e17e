"""``FILE:WEIGHT`` on the command line."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.config.fields import option
from dreambooth_core.errors import UserError


@dataclass(frozen=True)
class WeightedFile:
    """A file or folder and how strongly it counts."""

    path: Path
    weight: float = option(
        1.0, label="Weight", help="How strongly it counts.", minimum=-1000.0, maximum=1000.0
    )


def parse_weighted(text: str) -> WeightedFile:
    """Reads ``FILE:WEIGHT``; without a weight it is 1.

    The weight is what follows the last colon, and only if it is a number, because a Windows
    path has a colon too: ``C:\\a.safetensors``.

    Raises:
        UserError: the weight is infinite or not a number, or there is no file name.
    """
    head, colon, tail = text.rpartition(":")
    weight = _number(tail) if colon and head else None
    path, value = (text, 1.0) if weight is None else (head, weight)
    if not math.isfinite(value) or (colon and head and not tail.strip()):
        raise UserError(f"{tail!r} is not a usable weight", where=text, do="Write FILE:0.8.")
    if not path.strip():
        raise UserError("no file is named", where=text or "''", do="Write FILE or FILE:WEIGHT.")
    return WeightedFile(Path(os.path.expanduser(path)), value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
