"""What lies in the folder of a model of others: folders, regular files, their names. Standard
library only; ``reading`` opens the files."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path
from typing import Any

from dreambooth_core.disk.reading import read_bytes, read_json, regular, unreadable
from dreambooth_core.errors import UserError

LONGEST_TEXT = 16_000_000
"""Bytes of a tokenizer's merges or of a yaml, at most: real ones have one million."""
MOST_ENTRIES = 10_000
"""Entries of one folder of a model, at most: real ones have a few dozen."""

INDEXES = ("model_index.json", "modular_model_index.json")
"""What names the parts of a model in diffusers' layout; the second of a modular pipeline."""
PIPELINE = (
    INDEXES[0],
    *("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"),
    *("feature_extractor", "image_encoder", "safety_checker"),
)
"""What a pipeline's folder may consist of, and what goes when another takes its place."""


def index_of(folder: Path) -> Path:
    """A folder's index: the first of its kinds that is there."""
    return next(
        (folder / name for name in INDEXES if (folder / name).is_file()), folder / INDEXES[0]
    )


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; otherwise it is a regular file.

    Raises:
        UserError: nothing is there, something that is neither, or no system has such a name.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        return True
    regular(path)
    return False


def is_file(path: Path) -> bool:
    """Whether a regular file is there.

    Raises:
        UserError: a folder, a pipe, a device or a broken link has its name.
    """
    if not os.path.lexists(path):
        return False
    regular(path)
    return True


def read_scheduler(path: Path) -> dict[str, Any]:
    """A scheduler's configuration. Of DPM-Solver diffusers writes a default that is minus infinity,
    for which JSON has no word: it is left out.

    Raises:
        UserError: as ``read_json``.
    """
    return read_json(path, infinite=("lambda_min_clipped",))


def read_text(path: Path, limit: int = LONGEST_TEXT) -> str:
    """The text of a UTF-8 file.

    Raises:
        UserError: no such file, not a regular one, longer than ``limit`` bytes, not UTF-8.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("this file is not text in UTF-8", where=path) from error


def entries(folder: Path) -> list[Path]:
    """What lies in a folder, sorted by name.

    Raises:
        UserError: it cannot be listed, or has more than :data:`MOST_ENTRIES` entries.
    """
    try:
        with os.scandir(folder) as listed:
            found = [folder / entry.name for entry in islice(listed, MOST_ENTRIES + 1)]
    except OSError as error:
        raise UserError(
            f"this folder cannot be listed ({error.strerror or error})", where=folder
        ) from error
    if len(found) > MOST_ENTRIES:
        raise UserError(
            f"there are more than {MOST_ENTRIES:,} files in this folder, no model has as many",
            where=folder,
        )
    return sorted(found)
