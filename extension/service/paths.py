"""Which files the page and the API may name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import describe, flatten, nest
from dreambooth_core.errors import UserError
from dreambooth_core.trainer.config import TrainConfig

from ..host.base import Folders
from .types import Problem, Values

BASES = ("base.model", "base.vae")
"""Fields that hold a path or a name of the hub."""

INSIDE_RUN = ("log.folder",)
"""Fields that hold a path counted from the run's folder."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_NETWORK = re.compile(r"^[\\/]{2}")
"""``\\\\server\\share``: looking at it already sends the user's name and password hash there."""


class Paths:
    """Checks paths that come from outside.

    Args:
        folders: where the host keeps things, asked anew each time.
        anywhere: whether any file of this machine may be named: for the page of a host that
            only its own user can reach.
    """

    def __init__(self, folders: Callable[[], Folders], *, anywhere: bool) -> None:
        self.folders = folders
        self.anywhere = anywhere

    def roots(self) -> list[Path]:
        """The folders in which files may be named, links followed."""
        here = self.folders()
        found = [here.data, here.home, here.loras, here.checkpoints, *here.allowed]
        return [Path(os.path.realpath(root)) for root in found]

    def inside(self, path: str | os.PathLike[str], what: str) -> Path:
        """The real path, links and ``..`` followed; a relative one counts from the host's data.

        Raises:
            UserError: it leads out of the allowed folders, or is no path.
        """
        text = os.fspath(path).strip().strip('"')
        if not text or "\0" in text:
            raise UserError(f"{what} is not named", do="Give a path.")
        if not self.anywhere and _NETWORK.match(text):
            raise self._refusal(what, text)
        given = Path(text).expanduser() if self.anywhere else Path(text)
        real = Path(os.path.realpath(self.folders().data / given))
        if self.anywhere or any(real == root or root in real.parents for root in self.roots()):
            return real
        raise self._refusal(what, text)

    def problems(self, values: Values) -> Iterator[Problem]:
        """The values of a configuration that name files which may not be named."""
        if self.anywhere:
            return
        for key, value in flatten(nest(values)).items():
            plain = re.sub(r"\[\d+\]", "[]", key)
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and text:
                    try:
                        self._check(plain, text)
                    except UserError as error:
                        yield Problem(key, error.line)

    def require(self, values: Values) -> None:
        """Raises the first of :meth:`problems`, as ``UserError``."""
        for problem in self.problems(values):
            raise UserError(problem.message)

    def _check(self, key: str, text: str) -> None:
        if key in INSIDE_RUN:
            path = Path(text)
            if path.is_absolute() or path.drive or ".." in path.parts:
                raise UserError(f"{key} must lie in the run's folder", where=text)
        elif key in BASES:
            # A name of the hub is no path, unless something of that name lies about.
            if not _HUB_ID.fullmatch(text) or Path(text).exists():
                self.inside(text, key)
        elif key in path_keys():
            self.inside(text, key)

    def _refusal(self, what: str, text: str) -> UserError:
        return UserError(
            f"{what} is not in a folder that may be used from here",
            where=text,
            do="Upload the files, or add their folder to Settings → DreamBooth → Folders.",
        )


def path_keys() -> set[str]:
    """The keys of a configuration that hold paths, ``concepts[].images`` say."""
    return {node["key"] for node in _nodes(describe(TrainConfig)) if node.get("path")} - {*BASES}


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for child in node.get("children") or []:
        yield child
        yield from _nodes(child)
    if node.get("item"):
        yield from _nodes(node["item"])


def free_name(folder: Path, stem: str, ending: str) -> Path:
    """A file in ``folder`` that is not there yet: ``stem``, ``stem-2`` …"""
    number = 1
    while True:
        path = folder / f"{stem}{'' if number == 1 else f'-{number}'}{ending}"
        if not path.exists():
            return path
        number += 1
