"""Which files the page and the API may name: by what they are for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import describe, flatten, nest
from dreambooth_core.errors import UserError
from dreambooth_core.options import TrainConfig

from ..host.base import Folders
from .types import Problem, Values

BASES = ("base.model", "base.vae", "base.tokenizer")
"""Fields that hold a path or a name of the hub."""

MODEL_FILES = ("base.text_encoders",)
"""Fields that hold paths of models, in a list."""

ADAPTERS = ("method.init_from", "method.training_adapter")
"""Fields that hold the path of an adapter."""

INSIDE_RUN = ("log.folder",)
"""Fields that hold a path counted from the run's folder."""

LONGEST = 4000
"""Characters of a path; above it the operating system's own errors begin."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_LONG_NUMBER = re.compile(r"\d{4}")
"""Lists are filled up to the number that a key names."""


class Paths:
    """Confines paths that come from outside.

    A path is judged by its text alone before anything looks at it: a forbidden one is never
    touched, so neither can its existence be found out, nor does Windows send the user's name and
    password hash to the server of ``\\\\server\\share``. Then links are followed, and what they
    lead to is judged again; links that the host itself lists are its user's choice.

    Args:
        folders: where the host keeps things, asked anew each time.
        anywhere: whether any file of this machine may be read: for the page of a host that only
            its own user can reach. Results lie in the host's folders all the same.
        opened: image folders that the user opened in the page; they grow meanwhile.
        listed: the model files that the host lists.
    """

    def __init__(
        self,
        folders: Callable[[], Folders],
        *,
        anywhere: bool,
        opened: Iterable[Path] = (),
        listed: Callable[[], Iterable[Path]] = tuple,
    ) -> None:
        self.folders = folders
        self.anywhere = anywhere
        self.opened = opened
        self.listed = listed

    def roots(self, kind: str) -> list[Path]:
        """The folders for a kind of path.

        Args:
            kind: ``images`` (a folder of images, read; class images are written there too), or a
                kind of ``dreambooth_core.commands.options``: of ``READ``, models and adapters;
                of ``WRITTEN``, results.
        """
        here = self.folders()
        if kind == "images":
            return [*here.images, here.uploads, here.runs, *here.allowed, *self.opened]
        if kind == "adapter result":
            return [here.loras, here.runs]
        results = [here.checkpoints, here.diffusers, here.runs]
        if kind == "model result":
            return results
        results = [*results, here.loras]
        if kind == "result":
            return results
        return [*results, here.embeddings, *here.models, *here.allowed]

    def read(self, path: str | os.PathLike[str], kind: str, what: str) -> Path:
        """The real path of what is there; a relative one counts from the host's data.

        Raises:
            UserError: it leads out of the folders for its kind, is not there, or is no path. The
                answer is the same, so that nothing is learned of what may not be read.
        """
        text = self._text(path, what)
        if self.anywhere:
            given = Path(text).expanduser()
            return Path(os.path.realpath(self.folders().data / given))
        found = self._confined(text, kind, what)
        try:
            there = found.is_file() or found.is_dir()
        except OSError:  # a name that is longer than the disk's
            there = False
        if not there:
            raise _refusal(what, text)
        return found

    def write(self, path: str | os.PathLike[str], kind: str, what: str) -> Path:
        """The real path of what is to be made.

        Raises:
            UserError: it is not in a folder where such results belong, or is no path.
        """
        text = self._text(path, what)
        if self.anywhere:
            text = str(Path(text).expanduser())
        return self._confined(text, kind, what)

    def may_read(self, file: Path) -> bool:
        """Whether a file in a folder of images, which may be a link, lies where images are."""
        real_roots = [os.path.realpath(root) for root in self.roots("images")]
        return self.anywhere or _is_below(os.path.realpath(file), real_roots)

    def image(self, path: str | os.PathLike[str]) -> Path:
        """An image by its path: real is the folder, for the caption lies beside the name.

        Raises:
            UserError: its folder may not be used, or it is no image.
        """
        text = self._text(path, "the image")
        given = Path(text)
        folder = self.read(given.parent, "images", "the image")
        file = folder / given.name
        if not given.name or given.name == ".." or not _is_image(file):
            raise _refusal("the image", text)
        return file

    def settle(self, values: Values) -> tuple[Values, list[Problem]]:
        """The values with every path in them as :meth:`read` gives it, and those that may not be
        named. What is started is what was looked at, whatever the engine's folder is.
        """
        settled: Values = {}
        problems = []
        for key, value in _flat(values).items():
            settled[key] = value
            if key in MODEL_FILES and isinstance(value, list):
                try:
                    settled[key] = [str(self.read(str(item), "model", key)) for item in value]
                except UserError as error:
                    problems.append(Problem(key, error.line))
            if isinstance(value, str) and value:
                try:
                    settled[key] = self._settled(re.sub(r"\[\d+\]", "[]", key), value)
                except UserError as error:
                    problems.append(Problem(key, error.line))
        return settled, problems

    def _settled(self, key: str, text: str) -> str:
        if key in INSIDE_RUN and not self.anywhere:
            path = Path(text)
            if path.is_absolute() or path.drive or ".." in path.parts or "\0" in text:
                raise UserError(f"{key} must lie in the run's folder", where=text)
        if key in BASES:
            # A name of the hub is no path, unless something of that name lies about.
            if _HUB_ID.fullmatch(text) and not (self.folders().data / text).exists():
                return text
            return str(self.read(text, "model", key))
        if key in ADAPTERS:
            return str(self.read(text, "adapter", key))
        if key in path_keys():
            # Folders that training fills need not be there yet.
            found = self.read if key == "concepts[].images" or self.anywhere else self.write
            return str(found(text, "images", key))
        return text

    def _text(self, path: str | os.PathLike[str], what: str) -> str:
        text = os.fspath(path).strip().strip('"')
        if not text or "\0" in text or len(text) > LONGEST:
            raise UserError(f"{what} is not named", do="Give a path.")
        return text

    def _confined(self, text: str, kind: str, what: str) -> Path:
        """Judged by its text, then by where its links lead."""
        told = os.path.normpath(os.path.join(self.folders().data, text))
        _, below = os.path.splitdrive(told)
        roots = [os.path.abspath(root) for root in self.roots(kind)]
        real_roots = [os.path.realpath(root) for root in roots]
        if text.startswith("~") or (os.name == "nt" and ":" in below):
            raise _refusal(what, text)
        if not _is_below(told, [*roots, *real_roots]):
            raise _refusal(what, text)
        try:
            real = os.path.realpath(told)
        except OSError:  # a name that is too long, a link to itself
            raise _refusal(what, text) from None
        if _is_below(real, real_roots) or self._is_listed(told):
            return Path(real)
        raise _refusal(what, text)

    def _is_listed(self, told: str) -> bool:
        return os.path.normcase(told) in {os.path.normcase(str(path)) for path in self.listed()}


def _is_below(path: str, roots: list[str]) -> bool:
    """Whether a path is a root or below one, by their texts."""
    path = os.path.normcase(path)
    for root in map(os.path.normcase, roots):
        if path == root or path.startswith(root.rstrip(os.sep) + os.sep):
            return True
    return False


def _is_image(file: Path) -> bool:
    """Whether a regular file is an image, by its content."""
    from PIL import Image, UnidentifiedImageError

    if not file.is_file():
        return False
    try:
        with Image.open(file):
            return True
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError):
        return False


def _refusal(what: str, text: str) -> UserError:
    return UserError(
        f"{what} is not there, or not in a folder that may be used for it from here",
        where=text if len(text) <= 300 else f"{text[:300]}…",
        do="Upload the files, or add their folder to Settings → DreamBooth → Folders.",
    )


def _flat(values: Values) -> Values:
    """The values by the keys of single fields, also where sections were given whole.

    Raises:
        UserError: a key is none, or two contradict each other.
    """
    for key in values:
        if _LONG_NUMBER.search(key):
            raise UserError(f"{key[:60]} is not a key")
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
