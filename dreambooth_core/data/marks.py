"""Generated images that somebody called good or bad: ``marks.json`` beside them.

    {"version": 1, "base": "…", "images": [
        {"image": "step-000100-00.png", "prompt": "a photo of sks dog", "seed": 3, "mark": "good"}]}

``base`` is the fingerprint of the base's weights, as a run's receipt has it: what one base makes
badly says nothing of another. Images are named below the file's own folder. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.config.fields import MAX_SEED
from dreambooth_core.disk import write_json
from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.strict import parse_json

NAME = "marks.json"
WHERE = "marks.file"
GOOD, BAD = "good", "bad"
VERSION = 1
MOST = 10_000
"""Images of one file."""
LARGEST = 16_000_000
"""Bytes of it."""
LONGEST = 10_000
"""Characters of a prompt."""
_KEYS = ("image", "prompt", "seed", "mark")
_UNSAFE = re.compile(r'[\x00-\x1f<>:"|?*\\]')
"""In no name: control characters, and what Windows reads as something else than a name."""


@dataclass(frozen=True)
class Mark:
    """One generated image."""

    image: str
    """Its path below the folder of the file, with ``/``."""
    prompt: str
    seed: int
    mark: str
    """``good`` or ``bad``; empty where nobody has said yet."""

    def as_dict(self) -> dict[str, Any]:
        """As the file has it."""
        return {name: getattr(self, name) for name in _KEYS}


@dataclass(frozen=True)
class Marks:
    """What a file holds."""

    file: Path
    base: str
    """Fingerprint of the base's weights."""
    images: tuple[Mark, ...]

    def of(self, kind: str) -> list[Mark]:
        """The images of one mark."""
        return [one for one in self.images if one.mark == kind]

    def by_prompt(self) -> dict[str, tuple[list[Mark], list[Mark]]]:
        """The good and the bad images of each prompt that has any, as the file has them."""
        found: dict[str, tuple[list[Mark], list[Mark]]] = {}
        for one in self.images:
            if one.mark:
                good, bad = found.setdefault(one.prompt, ([], []))
                (good if one.mark == GOOD else bad).append(one)
        return found


def file_of(named: str | Path) -> Path:
    """The file that is meant by itself, by its folder, or by a run's folder."""
    path = Path(os.path.expanduser(named))
    if not path.is_dir():
        return path
    samples = path / "samples"
    return (samples if samples.is_dir() and not (path / NAME).exists() else path) / NAME


def read_marks(named: str | Path) -> Marks:
    """The marks in a file, or in the file of a folder.

    Raises:
        UserError: there is none, or it is not of that form; it names the place.
    """
    file = file_of(named)
    where = f"{WHERE}: {file}"
    try:
        found = parse_json(read_bytes(file, LARGEST), largest=LARGEST)
    except UserError as error:
        raise UserError(f"the marks cannot be read: {error.what}", where=where) from error
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise UserError(f"these are no marks of version {VERSION}", where=where)
    _only(found, ("version", "base", "images"), where)
    base, images = found.get("base"), found.get("images")
    if not isinstance(base, str) or not base.strip():
        raise UserError("nothing says which base made the images", where=f"{where} [base]")
    if not isinstance(images, list) or len(images) > MOST:
        raise UserError(f"this is no list of at most {MOST:,} images", where=f"{where} [images]")
    marks = tuple(_mark(one, f"{where} [images][{n}]") for n, one in enumerate(images))
    names = [one.image for one in marks]
    twice = next((name for n, name in enumerate(names) if name in names[:n]), None)
    if twice is not None:
        raise UserError(f"{twice} is there twice", where=where)
    return Marks(file, base, marks)


def write_marks(file: Path, base: str, changes: Iterable[Mark]) -> Marks:
    """Puts images into a file of marks, which is made if there is none, each in the place of the
    one of its name.

    Raises:
        UserError: the file is of another base, or what is there is no such file.
        SaveFailed: it cannot be written; the one that was there is untouched.
    """
    there = read_marks(file).images if os.path.lexists(file) else ()
    if there:
        require_base(file, base)
    by_name = {one.image: one for one in there}
    for n, one in enumerate(changes):
        checked = _mark(one.as_dict(), f"{file} [{n}]")
        by_name[checked.image] = checked
    if len(by_name) > MOST:
        raise UserError(f"more than {MOST:,} images", where=file)
    marks = Marks(file, base, tuple(by_name.values()))
    if there and marks.images == there:
        return marks  # whoever looks whether the file has changed is not misled
    images = [one.as_dict() for one in marks.images]
    write_json(file, {"version": VERSION, "base": base, "images": images})
    return marks


def require_base(named: str | Path, base: str) -> None:
    """Raises ``UserError`` unless the marked images are of the base with this fingerprint."""
    marks = read_marks(named)
    if marks.base != base:
        raise UserError(
            "the marked images were made by another base",
            where=f"{WHERE}: {marks.file}",
            do="Train on the base that made them, or mark images of this one.",
        )


def _mark(found: Any, where: str) -> Mark:
    if not isinstance(found, dict):
        raise UserError("an image is an object with keys", where=where)
    _only(found, _KEYS, where)
    image, prompt, seed, mark = (found.get(key) for key in _KEYS)
    if not isinstance(image, str) or not _is_below(image):
        raise UserError(f"{image!r:.200} names no file below this folder", where=where)
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > LONGEST:
        raise UserError(f"prompt is no text of 1 to {LONGEST:,} characters", where=where)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed is no whole number from 0 to {MAX_SEED}", where=where)
    if mark not in (GOOD, BAD, ""):
        raise UserError(
            f"mark is {mark!r:.60}, which is none", where=where, do='Give "good", "bad" or "".'
        )
    return Mark(image, prompt, seed, mark)


def _is_below(name: str) -> bool:
    """Whether a text is a plain relative path, on every system."""
    parts = name.split("/")
    odd = any(part in ("", ".", "..") or part != part.rstrip(" .") for part in parts)
    return len(name) <= 500 and not odd and not _UNSAFE.search(name)


def _only(found: dict[str, Any], known: Iterable[str], where: str) -> None:
    if strange := sorted(found.keys() - set(known)):
        raise UserError(
            f"unknown key {strange[0]!r:.60}", where=where, do=f"Known: {', '.join(known)}."
        )
