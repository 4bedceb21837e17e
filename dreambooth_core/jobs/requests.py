"""Requests to the engine: typed, and in a file, so that nothing in them is an argument.

``dreambooth task FILE`` (``commands/task.py``) reads them. Standard library only.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.jobs.files import to_json
from dreambooth_core.jobs.weighted import WeightedFile


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
