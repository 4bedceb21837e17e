"""``receipt.json``: what ran, with what, and what came of it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.disk import write_text
from dreambooth_core.disk.reading import parse_json, read_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.files import to_json
from dreambooth_core.jobs.folder import RunFolder

logger = logging.getLogger(__name__)

LARGEST = 256_000_000
"""Bytes of a receipt: it tells of every image."""

DAMAGED = "receipt.damaged.json"
"""Where a receipt that cannot be read is kept."""


def write_receipt(folder: RunFolder, **facts: Any) -> None:
    """Adds ``facts`` to the run's receipt and writes it whole.

    A fact that is a dict is merged into the one of that name, any other replaces it. Version,
    platform and the hash of the configuration are filled in here. A receipt that is damaged is
    kept under another name, and a new one begun: no run depends on it.

    Raises:
        SaveFailed: the disk is full or not writable; the old receipt is untouched.
    """
    try:
        receipt = read_receipt(folder)
    except UserError as error:
        logger.warning("%s; a new one is begun", error.line)
        with contextlib.suppress(OSError):
            folder.receipt.replace(folder.path / DAMAGED)
        receipt = {}
    receipt.update(
        dreambooth=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        written=round(time.time(), 3),
    )
    if folder.config.is_file():
        receipt["config_sha256"] = hashlib.sha256(folder.config.read_bytes()).hexdigest()
    for name, value in facts.items():
        old = receipt.get(name)
        receipt[name] = (
            {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
        )
    write_text(folder.receipt, to_json(receipt, indent=2) + "\n")


def read_receipt(folder: RunFolder) -> dict[str, Any]:
    """The receipt so far; empty if there is none.

    Raises:
        UserError: it is no file that can be read, or not a JSON object.
    """
    if not os.path.lexists(folder.receipt):
        return {}
    try:
        return parse_json(read_bytes(folder.receipt, LARGEST), limit=LARGEST)
    except ValueError as error:
        raise UserError(f"not valid JSON: {error}", where=folder.receipt) from error


@dataclass(frozen=True)
class Made:
    """What a run has made, and of what, by its receipt."""

    file: Path
    """Of the result, or its folder."""
    steps: int
    embedding: Path | None
    """The file of the learned token, where there is one."""
    token: str
    """Its word."""
    commit: str | None
    """Of the base, as the receipt has it."""


def read_made(folder: RunFolder) -> Made:
    """What a run has made: of a file that anybody may have written, so every value is looked at.

    Raises:
        UserError: it has no result yet, or its receipt is damaged or names files of elsewhere.
    """
    receipt = read_receipt(folder)
    found, base = receipt.get("result", {}), receipt.get("base", {})
    if found == {}:
        raise UserError("this run has no result yet", where=folder.path, do="Let it finish.")
    if not isinstance(found, dict) or not isinstance(base, dict):
        raise _damaged(folder, "result and base are no tables")
    steps, token, commit = found.get("steps", 0), found.get("token", ""), base.get("commit")
    if not isinstance(steps, int) or isinstance(steps, bool):
        raise _damaged(folder, "its steps are no whole number")
    if not isinstance(token, str) or not isinstance(commit, str | None):
        raise _damaged(folder, "token and commit are no texts")
    file, embedding = _inside(folder, found.get("file")), found.get("embedding")
    if embedding and not token:
        raise _damaged(folder, "an embedding has no token")
    learned = _inside(folder, embedding) if embedding else None
    return Made(file, steps, learned, token, commit)


def _inside(folder: RunFolder, name: Any) -> Path:
    """A file of the run, or beside it, where one layout has its results."""
    if not isinstance(name, str) or not name or "\0" in name:
        raise _damaged(folder, "a file has no name")
    path = Path(os.path.normpath(folder.path / name))
    if folder.path.parent not in path.parents:
        raise _damaged(folder, "it names a file of elsewhere")
    return path


def _damaged(folder: RunFolder, what: str) -> UserError:
    return UserError(
        f"the receipt of this run is damaged: {what}",
        where=folder.receipt,
        do="Name the run's files themselves.",
    )
