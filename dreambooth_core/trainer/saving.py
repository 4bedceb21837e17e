"""What a run hears while it works, and writes that wait for room.

Requests wait until the run can answer them; a full disk, for a second or for hours, ends no run.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dreambooth_core.errors import DreamBoothError, RunGone, SaveFailed, Stopped
from dreambooth_core.jobs import STOPS, RunFolder
from dreambooth_core.jobs.checkpoints import Removable, removable
from dreambooth_core.memory.measure import amount
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.distributed import Processes
from dreambooth_core.trainer.reports import Reporter

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = 24 * 3600.0
"""Seconds that a run waits for room before it ends."""

FIRST_PAUSE, LONGEST_PAUSE, POLL = 1.0, 30.0, 0.5
"""Seconds between two tries, at first and at most, and between two looks at what is asked."""

STAGE = "disk_full"
"""The stage of progress events while a write waits."""

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
FULL_WINDOWS = {39, 112}
"""ERROR_HANDLE_DISK_FULL, ERROR_DISK_FULL."""

SHOWN = 5
"""Checkpoints that a warning names."""


def disk_full(error: BaseException | None) -> OSError | None:
    """The error of the system that says that the disk or the quota is full, if that is behind
    ``error``: libraries wrap it in others."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError):
            windows = getattr(error, "winerror", None)
            if error.errno in FULL or windows in FULL_WINDOWS:
                return error
        error = error.__cause__ or error.__context__
    return None


class Asked:
    """Requests that wait until the run can answer them. Every process of a run has one."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._control = folder.control
        self._home = folder.identity()
        self._verbs: list[str] = []

    def stops(self) -> bool:
        """Whether the run shall end in the midst of what it does; the request stays for
        :meth:`take`.

        Raises:
            RunGone: the run's folder is not there any more.
        """
        self.look()
        self._verbs += self._control.poll()
        return not STOPS.isdisjoint(self._verbs)

    def take(self) -> list[str]:
        """What was asked since the last call.

        Raises:
            RunGone: the run's folder is not there any more.
        """
        self.stops()
        verbs, self._verbs = self._verbs, []
        return verbs

    def look(self) -> None:
        """Raises ``RunGone`` if the folder was deleted, or another is in its place."""
        if self._folder.identity() != self._home:
            raise RunGone(
                "the run's folder was deleted while it was at work; it stops",
                where=self._folder.path,
            )


@dataclass
class Saver:
    """Does writes, and does them again while the disk is full."""

    folder: Path
    """The run's."""
    runs: Path
    """The folder of runs, where others may have something to delete."""
    asked: Asked
    """Tells whether the user wants to stop meanwhile."""
    reporter: Reporter
    """Is told of the waiting."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    """In seconds. Both are others in tests."""

    def __call__(self, what: str, write: Callable[[], T]) -> T:
        """What ``write`` returns, once there is room for it.

        Args:
            what: what is written, for the user.
            write: writes all of it or nothing; called until it succeeds.

        Raises:
            Stopped: the user asked for it while it waited.
            SaveFailed: there was no room for a whole day.
            RunGone: the run's folder is not there any more.
        """
        self.asked.look()
        first, cause, since, pause = None, "", 0.0, FIRST_PAUSE
        while first is None or self.clock() - since < PATIENCE:
            if first is not None:
                self._rest(pause, what, cause)
                pause = min(pause * 2, LONGEST_PAUSE)
            try:
                done = write()
            except (OSError, RuntimeError, DreamBoothError) as error:
                full = disk_full(error)
                if full is None:
                    self.asked.look()
                    raise
                if first is None:
                    log.warning("%s: %s", what, error)
                    cause = f"{full.strerror or full}"
                    cause += f" ({full.filename})" if full.filename else ""
                    first, since = full, self.clock()
                    self._tell(what, cause)
                continue
            if first is not None:
                waited = self.clock() - since
                self.reporter.warn(f"there is room again: {what} was saved after {waited:.0f} s")
            return done
        raise SaveFailed(
            f"{what} could not be saved, the disk was full for {PATIENCE / 3600:.0f} hours; the "
            f"first cause was: {cause}",
            where=self.folder,
            do="Make room and resume the run.",
        ) from first

    def _rest(self, seconds: float, what: str, cause: str) -> None:
        until = self.clock() + seconds
        while self.clock() < until:
            if self.asked.stops():
                raise Stopped(
                    f"stopped while it waited for room; {what} is not saved. The cause: {cause}"
                )
            self.sleep(POLL)

    def _tell(self, what: str, cause: str) -> None:
        found = removable(self.runs, self.folder)
        names = ", ".join(_named(one, self.runs) for one in found[:SHOWN])
        advice = "No old checkpoint lies here: delete something else"
        if found:
            total = amount(sum(one.size for one in found))
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            advice = f"Old checkpoints that could be deleted, {total} in all: {names}{more}"
        self.reporter.warn(
            f"the disk is full: {what} waits and is tried again until there is room ({cause}). "
            f"{advice}."
        )
        self.reporter.emit(
            "progress",
            stage=STAGE,
            step=0,
            steps=0,
            removable=[{"path": str(one.path), "bytes": one.size} for one in found],
        )


def _named(one: Removable, runs: Path) -> str:
    try:
        name = one.path.relative_to(runs).as_posix()
    except ValueError:
        name = str(one.path)
    return f"{name} ({amount(one.size)})"


class Context:
    """A run but for its models: what was asked for, where it lies, and who takes part."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, processes: Processes, reporter: Reporter
    ) -> None:
        self.config, self.folder = config, folder
        self.processes, self.reporter = processes, reporter
        self.asked = Asked(folder)
        self.saver = Saver(folder.path, Path(config.run.output), self.asked, reporter)


SAVING_SHARE = 0.05
"""The most of the run's time that rolling checkpoints may take."""


class Clock:
    """Says when a rolling checkpoint is due: by time, since steps take from milliseconds to
    minutes, and less often where saving takes long. Never, if ``minutes`` is None."""

    def __init__(self, minutes: float | None) -> None:
        self._interval = None if minutes is None else minutes * 60
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether it is time."""
        return self._interval is not None and time.monotonic() - self._since >= self._interval

    def saved(self, began: float) -> None:
        """A checkpoint, begun at that time, is written."""
        self._since = time.monotonic()
        if self._interval is not None:
            self._interval = max(self._interval, (self._since - began) / SAVING_SHARE)
