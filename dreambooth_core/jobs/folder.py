"""The folder that is a run: where each of its files lies."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.control import Control
from dreambooth_core.jobs.events import EventLog

MOST_NAMES = 10_000
LONGEST = 80
"""Characters of a run's name; Windows allows 260 for a whole path."""

_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]+')
_RESERVED = re.compile(
    r"^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\.|$)", re.IGNORECASE
)
"""Device names, which Windows refuses with any extension too."""


class RunFolder:
    """``<runs>/<name>/``: everything that a run reads and writes, and how to find it.

    Making a ``RunFolder`` touches nothing on disk; :meth:`create` and :meth:`open` do.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path = Path(os.path.expanduser(path)).absolute()
        self.name = path.name
        self.config = path / "config.yaml"
        """The configuration in effect."""
        self.receipt = path / "receipt.json"
        """What ran with what: versions, seeds, hashes, results."""
        self.events_file = path / "events.jsonl"
        self.control_file = path / "control.jsonl"
        self.lock_file = path / "worker.lock"
        self.checkpoints = path / "checkpoints"
        """States to resume from."""
        self.samples = path / "samples"
        self.logs = path / "logs"
        """TensorBoard's files, ``worker.log`` (raw output) and ``engine.log`` (messages)."""
        self.worker_log = self.logs / "worker.log"
        self.engine_log = self.logs / "engine.log"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and other.path == self.path

    def __hash__(self) -> int:
        return hash(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

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


def sanitise(name: str) -> str:
    """The nearest name that can be a folder on Windows, macOS and Linux; never empty.

    >>> sanitise("my dog: <best>/2. ")
    'my dog_ _best_2'
    """
    text = unicodedata.normalize("NFC", name)
    text = text.encode("utf-8", errors="replace").decode("utf-8")  # lone surrogates
    text = _FORBIDDEN.sub("_", text)
    text = re.sub(r"\s+", " ", text)[:LONGEST]
    while len(text.encode("utf-8")) > 2 * LONGEST:
        text = text[:-1]
    text = text.strip(" .")
    if _RESERVED.match(text):
        text = "_" + text
    return text or "run"
