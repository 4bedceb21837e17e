"""The folder that a translated command line runs in, and the run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from dreambooth_core.compat.draft import Draft
from dreambooth_core.config.loading import dump
from dreambooth_core.disk import write_text
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import Proposal, RunFolder
from dreambooth_core.jobs.proposal import PREFIX

PATIENCE = 120.0
"""Seconds that the other processes wait for the first to write the configuration."""


def prepare(translation: Draft, tell: Callable[[str], None]) -> tuple[RunFolder, Proposal | None]:
    """Makes the run's folder with its configuration in it.

    An earlier run there is set aside, unless this one resumes it: then nothing changes before the
    worker accepts the settings, which are the second of what is returned.

    Raises:
        UserError: a run is at work there, or the folder cannot be made.
    """
    folder = RunFolder(translation.folder)
    text = dump(translation.config, help=True)
    if int(os.environ.get("RANK") or 0) > 0:
        return folder, _wait_for(folder, text)
    if folder.lock_file.exists() and folder.lock.is_held():
        raise UserError("a run is at work there", where=folder.path, do="Name another folder.")
    if folder.exists() and translation.config.run.resume:
        return folder, Proposal.make(folder, {folder.config.name: text})
    if folder.exists():
        aside = _set_aside(folder)
        tell(f"the records of an earlier run there are now in {aside}")
    folder.make()
    write_text(folder.config, text)
    return folder, None


def _set_aside(folder: RunFolder) -> Path:
    """Moves what an earlier run would be resumed from, and its records."""
    number = 1
    while (aside := folder.path / f"earlier-{number}").exists():
        number += 1
    aside.mkdir()
    for path in (
        folder.config,
        folder.receipt,
        folder.events_file,
        folder.control_file,
        folder.checkpoints,
        folder.samples,
    ):
        if path.exists():
            path.rename(aside / path.name)
    return aside


def _wait_for(folder: RunFolder, text: str) -> Proposal | None:
    """Returns when the first process has written this very configuration, and where if it is a
    proposal."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        offered = [Proposal(path) for path in folder.path.glob(f"{PREFIX}*")]
        for proposal in offered:
            if _says(proposal.config, text):
                return proposal
        if _says(folder.config, text):
            return None
        time.sleep(0.1)
    raise UserError("the first process has written no configuration", where=folder.config)


def _says(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except OSError:
        return False
