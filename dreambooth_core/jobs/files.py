"""JSON of whatever is at hand, and the files of a run that only grow."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def plain(value: Any) -> Any:
    """``value`` as JSON can say it: NaN and infinity become null, paths and the rest strings."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.as_posix()
    if callable(getattr(value, "item", None)):  # a number of numpy's or torch's
        with contextlib.suppress(ValueError, RuntimeError, TypeError):
            return plain(value.item())
    return str(value)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Valid JSON for whatever ``value`` holds."""
    return json.dumps(plain(value), ensure_ascii=False, indent=indent, allow_nan=False)


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Appends ``record`` as one JSON line, in a single write, and hands it to the system.

    A line that a killed writer left half-written is closed first, so that it spoils itself alone.

    Raises:
        OSError: the disk is full or the folder is not writable.
    """
    line = to_json(record).encode("utf-8") + b"\n"
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags, 0o666)
    try:
        size = os.fstat(handle).st_size
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            if os.read(handle, 1) not in (b"\n", b""):
                line = b"\n" + line
        written = os.write(handle, line)
        while written < len(line):  # only on a disk that is nearly full
            written += os.write(handle, line[written:])
    finally:
        os.close(handle)


def read_lines(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete JSON lines from byte ``offset`` on, and the offset to go on from.

    A last line without its end is left for the next call; a line that is not a JSON object is
    skipped with a warning. A file that is not there yet has no lines, nor has what is no file; one
    that is shorter than ``offset`` was replaced and is read from its beginning.
    """
    if not os.path.isfile(path):  # a pipe would be waited for, a device never ends
        return [], 0
    try:
        with path.open("rb") as file:
            if offset > os.fstat(file.fileno()).st_size:
                offset = 0
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], 0
    end = data.rfind(b"\n") + 1
    return list(_objects(data[:end], path)), offset + end


def _objects(data: bytes, path: Path) -> Iterator[dict[str, Any]]:
    for line in data.split(b"\n"):
        text = line.decode("utf-8", errors="replace").strip().strip("\x00")
        if not text:
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            yield record
        else:
            logger.warning("%s: a line that is not a JSON object was skipped: %.60s", path, text)
