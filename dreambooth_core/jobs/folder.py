"""The folder that is a run: where each of its files lies."""

from __future__ import annotations

import os
from pathlib import Path

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.control import Control
from dreambooth_core.jobs.events import EventLog
from dreambooth_core.jobs.names import sanitise

MOST_NAMES = 10_000


class RunFolder:
    """``<runs>/<name>/``: everything that a run reads and writes, and how to find it.

    Making a ``RunFolder`` touches nothing on disk; :meth:`create` and :meth:`open` do.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path)).absolute()

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        """The configuration in effect."""
        return self.path / "config.yaml"

    @property
    def receipt(self) -> Path:
        """What ran with what: versions, seeds, hashes, results."""
        return self.path / "receipt.json"

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def control_file(self) -> Path:
        return self.path / "control.jsonl"

    @property
    def lock_file(self) -> Path:
        return self.path / "worker.lock"

    @property
    def checkpoints(self) -> Path:
        """States to resume from."""
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def logs(self) -> Path:
        """TensorBoard's files, ``worker.log`` (raw output) and ``engine.log`` (messages)."""
        return self.path / "logs"

    @property
    def worker_log(self) -> Path:
        return self.logs / "worker.log"

    @property
    def engine_log(self) -> Path:
        return self.logs / "engine.log"

    @property
    def events(self) -> EventLog:
        """What happened. One process, the holder of the lock, writes it."""
        return EventLog(self.events_file)

    @property
    def control(self) -> Control:
        """What was asked. Anyone writes it, the worker reads it.

        A new reader each time, which begins at the run's latest start: keep one to poll it.
        """
        return Control(self.control_file)

    @property
    def lock(self) -> FileLock:
        return FileLock(self.lock_file)

    def relative(self, path: str | os.PathLike[str]) -> str:
        """``path`` as events and receipts name it: from the run's folder, with slashes."""
        absolute = Path(path).absolute()
        try:
            return absolute.relative_to(self.path).as_posix()
        except ValueError:
            return absolute.as_posix()

    def identity(self) -> tuple[int, int] | None:
        """What tells this folder from another that is put in its place; None if it is gone."""
        try:
            facts = self.path.stat()
        except OSError:
            return None
        return facts.st_dev, facts.st_ino

    def exists(self) -> bool:
        """Whether the folder is there and looks like a run's."""
        files = (self.config, self.events_file, self.control_file, self.lock_file)
        return any(os.path.isfile(file) for file in files)

    def make(self) -> RunFolder:
        """Creates the folder and its subfolders where they are missing; returns itself.

        Raises:
            UserError: they cannot be made.
        """
        try:
            for folder in (self.path, self.checkpoints, self.samples, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(self.path, error) from error
        return self

    @classmethod
    def create(cls, root: str | os.PathLike[str], name: str) -> RunFolder:
        """A new, empty run below ``root``, named ``name`` or, if taken, ``name-2``, ``name-3`` …

        Raises:
            UserError: ``root`` is not a folder, or not writable.
        """
        base = Path(os.path.expanduser(root)).absolute()
        clean = sanitise(name)
        try:
            base.mkdir(parents=True, exist_ok=True)
            for number in range(1, MOST_NAMES):
                path = base / (clean if number == 1 else f"{clean}-{number}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path).make()
        except OSError as error:
            raise _not_writable(base, error) from error
        raise UserError(f"{MOST_NAMES} runs are named {clean}", where=base, do="Choose another.")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """A run that exists.

        Raises:
            UserError: there is no run at ``path``.
        """
        folder = cls(path)
        if not os.path.isdir(folder.path):
            raise UserError("no such run", where=folder.path, do="'dreambooth runs' lists them.")
        if not folder.exists():
            raise UserError(
                "this folder is not a run: it has no config.yaml and no events.jsonl",
                where=folder.path,
            )
        return folder


def _not_writable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot make a folder for runs: {error.strerror or error}",
        where=error.filename or path,
        do="Choose another place for runs, or make this one writable.",
    )
