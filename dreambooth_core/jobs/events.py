"""``events.jsonl``: what happened in a run, one JSON object a line.

Every event has ``time`` (seconds since 1970) and ``kind``. What the kinds carry:

========  ===================================================================================
started   ``steps`` (in all), ``step`` (where it begins; above 0 when resumed), anything else
progress  ``stage`` (``train`` if absent, else a preparation), ``step``, ``steps``, ``loss`` …
sample    ``path``, ``step``, ``prompt``
measured  ``step``, ``held_out_loss``, of images ``likeness``, ``prompt``, ``drift``,
          ``diversity``, ``score``; ``best`` (the best step so far)
saved     ``path``, ``step``, ``result`` (true for what the run is for: an adapter, a model)
warning   ``message``
error     ``message`` (one line), ``what``, ``where``, ``do``, ``type``, ``details``; an ending
finished  ``outcome`` (``done`` or ``stopped``), ``results`` (paths), ``message``; an ending
========  ===================================================================================

An ending with ``refused`` came before the run was touched: the run is what it was before.

Paths are relative to the run's folder, with forward slashes, or absolute if outside it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.errors import SaveFailed
from dreambooth_core.jobs.files import append_line, plain, read_lines

Event = dict[str, Any]

KINDS = ("started", "progress", "sample", "measured", "saved", "warning", "error", "finished")
ENDINGS = ("error", "finished")
"""Kinds after which nothing comes until the run is started again."""


class EventLog:
    """Writes and reads the events of a run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._writing = threading.Lock()

    def write(self, kind: str, **details: Any) -> Event:
        """Appends one event and returns it as it was written. Safe from several threads.

        Raises:
            ValueError: an unknown ``kind``.
            SaveFailed: the disk is full or the folder is gone.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind of event {kind!r}: one of {', '.join(KINDS)}")
        event: Event = {"time": round(time.time(), 3), "kind": kind, **details}
        try:
            with self._writing:
                append_line(self.path, event)
        except OSError as error:
            reason = error.strerror or str(error)
            raise SaveFailed(f"could not be written: {reason}", where=self.path) from error
        cleaned: Event = plain(event)
        return cleaned

    def read(self, offset: int = 0) -> tuple[list[Event], int]:
        """The whole events from byte ``offset`` on, and the offset to go on from."""
        return read_events(self.path, offset)

    def size(self) -> int:
        """Bytes written so far: the offset of what comes next."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def __iter__(self) -> Iterator[Event]:
        return iter(self.read()[0])


def read_events(path: str | os.PathLike[str], offset: int = 0) -> tuple[list[Event], int]:
    """The whole events of a file from byte ``offset`` on, and the offset to go on from.

    A half-written last line waits for the next call; anything that is not an event is skipped.
    """
    records, end = read_lines(Path(path), offset)
    return [record for record in records if isinstance(record.get("kind"), str)], end
