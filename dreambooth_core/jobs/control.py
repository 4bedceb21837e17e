"""``control.jsonl``: what a person asks of a running worker, one JSON object a line.

Clients append, the worker polls. A line ``{"verb": "start", "events": N}`` marks each start of
the worker (``N``: how long the event log was): what was asked before it is history, what was
asked after it counts, even if the worker needs a minute to come up. ``exited`` marks that the
process of a start, known by its ``start``, has ended.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.jobs.files import append_line, read_lines

logger = logging.getLogger(__name__)

VERBS: dict[str, str] = {
    "sample": "make the validation images now",
    "save": "save now and continue",
    "stop": "finish this step, save, stop",
    "stop_after_epoch": "finish this epoch, save, stop",
    "stop_without_saving": "stop now without saving; what was saved before stays",
    "stop_after_step": "finish this step, save, stop (the former name of stop)",
}
"""What can be asked, and what it means."""

STOPS = frozenset({"stop", "stop_after_step", "stop_without_saving"})
"""Verbs that end a run at its next step, or in the midst of whatever else it does."""

START = "start"
EXITED = "exited"


_heard: dict[Path, list[str]] = {}
"""What this very process was asked where it could not be written down: the disk is full, say."""


class Control:
    """Writes requests, or hands out those that are new since the last :meth:`poll`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offset = 0

    def hear(self, verb: str) -> None:
        """Asks the worker in this process for ``verb``, also where the file cannot be written."""
        try:
            self.request(verb)
        except UserError:
            _heard.setdefault(self.path, []).append(verb)

    def request(self, verb: str) -> None:
        """Asks for ``verb``.

        Raises:
            UserError: there is no such verb, or the run's folder is not writable.
        """
        if verb not in VERBS:
            raise UserError(f"unknown command {verb!r}", do=f"Use one of {', '.join(VERBS)}.")
        self._append({"verb": verb})

    def mark_start(self, events: int) -> str:
        """Notes that a worker is about to run, the event log being ``events`` bytes long.

        Returns:
            A name for this start, for :meth:`mark_exited`.
        """
        name = secrets.token_hex(4)
        _heard.pop(self.path, None)
        self._append({"verb": START, "start": name, "events": events})
        return name

    def mark_exited(self, start: str, code: int) -> None:
        """Notes that the process of a start has ended, with its exit code."""
        self._append({"verb": EXITED, "start": start, "code": code})

    def poll(self) -> list[str]:
        """The verbs asked for since the last call, or since the latest start, oldest first."""
        records, self._offset = read_lines(self.path, self._offset)
        verbs: list[str] = []
        for record in records:
            verb = record.get("verb")
            if verb == START:
                verbs.clear()
            elif isinstance(verb, str) and verb in VERBS:
                verbs.append(verb)
            elif verb != EXITED:
                logger.warning("%s: unknown command %.60r was ignored", self.path, verb)
        return [*verbs, *_heard.pop(self.path, [])]

    def last_start(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """The latest ``start`` record, and its ``exited`` record; None for each that is absent.

        The end of an earlier process may be noted only after the next one was started.
        """
        start: dict[str, Any] | None = None
        exited: dict[str, Any] | None = None
        for record in read_lines(self.path)[0]:
            if record.get("verb") == START:
                start, exited = record, None
            elif record.get("verb") == EXITED and start is not None:
                exited = record if record.get("start") == start.get("start") else exited
        return start, exited

    def _append(self, record: dict[str, Any]) -> None:
        try:
            append_line(self.path, {"time": round(time.time(), 3), **record})
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"cannot ask the run: {reason}", where=self.path) from error
