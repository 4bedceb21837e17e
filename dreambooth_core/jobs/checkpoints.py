"""A run's checkpoints as folders: which there are, how large, and which could be deleted.

Standard library only; what is inside them is the trainer's (:mod:`dreambooth_core.trainer.state`).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.disk import remove
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError

MANIFEST = "state.json"
ROLLING = "rolling"
"""In the manifest of a checkpoint that the next one replaces."""

_NAME = re.compile(r"^step-(\d+)$")


@dataclass(frozen=True)
class Removable:
    """A checkpoint that could be deleted to make room."""

    path: Path
    size: int
    """Bytes."""


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def saved_steps(root: str | os.PathLike[str]) -> dict[int, Path]:
    """The checkpoints below ``root``, oldest first, by step."""
    found = {}
    folder = Path(root)
    if folder.is_dir():
        for path in folder.iterdir():
            match = _NAME.match(path.name)
            if match and (path / MANIFEST).is_file():
                found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def is_rolling(path: Path) -> bool:
    """Whether the next checkpoint replaces this one."""
    try:
        return read_json(path / MANIFEST).get(ROLLING) is True
    except UserError:
        return False


def prune(root: Path, keep: int | None) -> None:
    """Deletes what is no longer needed: rolling checkpoints that a newer one replaced, and the
    oldest others beyond ``keep`` (None keeps all).

    Only for the holder of the run's lock.
    """
    steps = saved_steps(root)
    newest = next(reversed(steps.values()), None)
    rolling = [path for path in steps.values() if is_rolling(path)]
    kept = [path for path in steps.values() if path not in rolling]
    doomed = [path for path in rolling if path != newest]
    if keep is not None:
        doomed += kept[:-keep]
    for path in doomed:
        remove(path)


def remove_rolling(root: Path) -> None:
    """Deletes the rolling checkpoint: the run is done and its result is proven."""
    for path in saved_steps(root).values():
        if is_rolling(path):
            remove(path)


def removable(runs: Path, own: Path) -> list[Removable]:
    """Checkpoints below ``runs`` that nobody needs to resume from, the largest first: all but the
    newest of each run.

    Args:
        runs: the folder of runs.
        own: the folder of the run that asks; it may lie elsewhere.
    """
    try:
        folders = {own, *(path for path in runs.iterdir() if path.is_dir())}
    except OSError:
        folders = {own}
    found = [
        Removable(path, size_of(path))
        for folder in folders
        for path in list(saved_steps(folder / "checkpoints").values())[:-1]
    ]
    return sorted(found, key=lambda one: (-one.size, one.path))


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder; of what is deleted meanwhile, none."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
