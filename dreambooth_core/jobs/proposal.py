"""What a start brings along: files of the run that change only if the start is accepted.

Whoever resumes a run with other settings writes them into a folder of its own inside the run's,
and names it to the worker. The worker reads them there, and only when it holds the lock and every
check has passed do they take their places. A refused start leaves the run as it was, and two who
resume at once do not meet.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from dreambooth_core.disk import write_text
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.jobs.folder import RunFolder

PREFIX = ".next-"
STALE = 24 * 3600.0
"""Seconds after which a proposal that no worker took up is litter."""


class Proposal:
    """One start's files, in a folder of their own."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def make(cls, folder: RunFolder, files: Mapping[str, str]) -> Proposal:
        """Writes the files, by their names in the run's folder.

        Raises:
            SaveFailed: they cannot be written; nothing is left of them.
        """
        proposal = cls(folder.path / f"{PREFIX}{secrets.token_hex(6)}")
        try:
            proposal.path.mkdir()
            for name, text in files.items():
                write_text(proposal.path / name, text)
        except OSError as error:
            proposal.withdraw()
            reason = error.strerror or str(error)
            raise SaveFailed(f"could not be written: {reason}", where=proposal.path) from error
        except SaveFailed:
            proposal.withdraw()
            raise
        return proposal

    @property
    def is_one(self) -> bool:
        """Whether the folder is called as a proposal's is."""
        return self.path.name.startswith(PREFIX)

    @property
    def config(self) -> Path:
        """The configuration that the start wants."""
        return self.path / "config.yaml"

    def check(self, folder: RunFolder) -> None:
        """Raises ``UserError`` if this is no proposal of that run."""
        if self.path.parent != folder.path or not self.is_one:
            raise UserError("not a proposal of this run", where=self.path)
        if not self.config.is_file():
            raise UserError("the settings to resume with are gone", where=self.path)

    def accept(self, folder: RunFolder) -> None:
        """Puts every file in its place, each by a single rename; a full disk does not matter.

        Only for the holder of the run's lock.
        """
        if self.path.is_dir():
            for file in sorted(self.path.iterdir()):
                file.replace(folder.path / file.name)
        self.withdraw()
        for path in folder.path.glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE:
                    shutil.rmtree(path, ignore_errors=True)

    def withdraw(self) -> None:
        """Removes the files."""
        shutil.rmtree(self.path, ignore_errors=True)
