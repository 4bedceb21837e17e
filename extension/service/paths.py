"""Which files the page and the API may name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache
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
_LONG_NUMBER = re.compile(r"\d{4}")
"""Lists are filled up to the number that a key names."""

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
        if not self.anywhere and (_NETWORK.match(text) or text.startswith("~")):
            raise self._refusal(what, text)
        given = Path(text).expanduser()
        real = Path(os.path.realpath(self.folders().data / given))
        if self.anywhere or any(real == root or root in real.parents for root in self.roots()):
            return real
        raise self._refusal(what, text)

    def settle(self, values: Values) -> tuple[Values, list[Problem]]:
        """The values with every path in them as :meth:`inside` gives it, and those that may not
        be named. What is started is what was looked at, whatever the engine's folder is.
        """
        settled: Values = {}
        problems = []
        for key, value in _flat(values).items():
            settled[key] = value
            if isinstance(value, str) and value:
                try:
                    settled[key] = self._settled(re.sub(r"\[\d+\]", "[]", key), value)
                except UserError as error:
                    problems.append(Problem(key, error.line))
        return settled, problems

    def _settled(self, key: str, text: str) -> str:
        if key in INSIDE_RUN and not self.anywhere:
            path = Path(text)
            if path.is_absolute() or path.drive or ".." in path.parts:
                raise UserError(f"{key} must lie in the run's folder", where=text)
        # A name of the hub is no path, unless something of that name lies about.
        is_base = key in BASES and not (_HUB_ID.fullmatch(text) and not Path(text).exists())
        return str(self.inside(text, key)) if is_base or key in path_keys() else text

    def _refusal(self, what: str, text: str) -> UserError:
        return UserError(
            f"{what} is not in a folder that may be used from here",
            where=text,
            do="Upload the files, or add their folder to Settings → DreamBooth → Folders.",
        )


def _flat(values: Values) -> Values:
    """The values by the keys of single fields, also where sections were given whole.

    Raises:
        UserError: a key is none, or two contradict each other.
    """
    for key in values:
        if _LONG_NUMBER.search(key):
            raise UserError(f"{key} is not a key")
    try:
        return flatten(nest(values))
    except (ValueError, TypeError, LookupError, AttributeError):
        raise UserError("these values contradict each other", do="Name each field once.") from None


@cache
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
