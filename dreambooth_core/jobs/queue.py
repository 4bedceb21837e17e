"""A queue of runs that share a GPU: each worker waits until those before it have ended.

Every waiting or working worker holds the lock of a numbered ticket in ``<runs>/.queue``. The
operating system lets go of it however the worker ends, so the dead hold nobody up.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.errors import UserError

FOLDER = ".queue"
STAGE = "queue"
"""The stage of the progress events of a run that waits: ``steps`` says how many are before it."""

POLL = 0.5


class Turn:
    """One place in the queue of a folder of runs."""

    def __init__(self, runs: str | os.PathLike[str]) -> None:
        self.folder = Path(runs) / FOLDER
        self._ticket: FileLock | None = None
        self._number = 0

    def take(self) -> None:
        """Takes the last place.

        Raises:
            UserError: the folder is not writable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"not writable: {reason}", where=self.folder) from error
        # One at a time: whoever comes later sees this ticket held. Tickets are made and removed
        # only here, so that nobody removes one that another is about to hold.
        with self._mutex():
            numbers = self._numbers()
            self._number = max(numbers, default=0) + 1
            ticket = FileLock(self._path(self._number))
            if not ticket.acquire():
                raise UserError("the queue cannot be entered", where=self.folder)
            self._ticket = ticket
            for number in numbers:
                self._forget(number)

    def ahead(self) -> int:
        """How many are before this place."""
        earlier = [number for number in self._numbers() if number < self._number]
        return sum(FileLock(self._path(number)).is_held() for number in earlier)

    def wait(self, tell: Callable[[int], None]) -> None:
        """Returns when nobody is before this place.

        Args:
            tell: called with how many are, at first and whenever that changes, and now and then
                in between; what it raises ends the waiting.
        """
        while (ahead := self.ahead()) > 0:
            tell(ahead)
            time.sleep(POLL)

    def leave(self) -> None:
        """Gives the place up."""
        if self._ticket is None:
            return
        self._ticket.release()
        self._ticket = None

    def _numbers(self) -> list[int]:
        return sorted(int(p.stem) for p in self.folder.glob("*.ticket") if p.stem.isdigit())

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.ticket"

    def _forget(self, number: int) -> None:
        """Removes the ticket of one who left."""
        path = self._path(number)
        if not FileLock(path).is_held():
            with contextlib.suppress(OSError):
                path.unlink()

    @contextlib.contextmanager
    def _mutex(self) -> Iterator[None]:
        lock = FileLock(self.folder / "mutex")
        if not lock.acquire(patience=30.0):
            raise UserError("another run has been entering the queue for long", where=lock.path)
        try:
            yield
        finally:
            lock.release()
