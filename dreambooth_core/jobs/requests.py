"""Requests to the engine: typed, and in a file, so that nothing in them is an argument.

``dreambooth task FILE`` (``commands/task.py``) reads them. Standard library only.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.fields import option
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.files import to_json


@dataclass(frozen=True)
class WeightedFile:
    """A file or folder and how strongly it counts."""

    path: Path
    weight: float = option(
        1.0, label="Weight", help="How strongly it counts.", between=(-1000.0, 1000.0)
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


def as_request(task: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A request, ready for JSON.

    Args:
        task: a command's name.
        options: fields of the command's ``Options``; what is left out keeps its default.
    """
    return {"task": task, "options": {name: _data(value) for name, value in options.items()}}


def _data(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_data(each) for each in value]
    if isinstance(value, WeightedFile):
        return {"file": str(value.path), "weight": value.weight}
    return value


@contextlib.contextmanager
def request_file(task: str, options: Mapping[str, Any]) -> Iterator[Path]:
    """A request as a file that only this user reads, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
        path = Path(folder) / "request.json"
        path.write_text(to_json(as_request(task, options)), encoding="utf-8")
        yield path
