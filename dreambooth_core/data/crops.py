"""Crops: which part of an image is trained on, in a file beside it; the image stays as it is.

``dog.jpg.crop.json`` (or ``dog.crop.json``) holds ``{"left": 0.1, "top": 0, "right": 0.9,
"bottom": 1}``: shares of the upright image's width and height, so that a crop survives another
size of the same image. Standard library only: hosts import it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.disk import write_text
from dreambooth_core.disk.reading import parse_json, read_bytes
from dreambooth_core.errors import UserError

ENDING = ".crop.json"
LARGEST_FILE = 4096
"""Bytes. Four numbers need no more."""
LEAST = 0.01
"""The smallest share of a side: below it a click was taken for a crop."""
SIDES = ("left", "top", "right", "bottom")

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in whole pixels, as Pillow has it."""


@dataclass(frozen=True)
class Crop:
    """A part of an image, in shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float

    def box(self, width: int, height: int) -> Box:
        """The part in pixels of an image of that size: at least one on each side."""
        left = min(round(self.left * width), width - 1)
        top = min(round(self.top * height), height - 1)
        right = max(round(self.right * width), left + 1)
        bottom = max(round(self.bottom * height), top + 1)
        return left, top, right, bottom

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the part, in pixels."""
        left, top, right, bottom = self.box(width, height)
        return bottom - top, right - left


def crop_of(values: Sequence[Any]) -> Crop:
    """A crop by its four shares: left, top, right, bottom.

    Raises:
        UserError: they are no part of an image.
    """
    do = "Name left, top, right and bottom, each from 0 to 1."
    if len(values) != len(SIDES) or not all(type(value) in (int, float) for value in values):
        raise UserError("a crop is four numbers", do=do)
    left, top, right, bottom = values
    # NaN is in no range, and no integer is too long to be compared.
    if not all(0 <= value <= 1 for value in values):
        raise UserError("a crop's sides are shares of the image", do=do)
    if right - left < LEAST or bottom - top < LEAST:
        raise UserError("this crop leaves nothing of the image", do=do)
    return Crop(float(left), float(top), float(right), float(bottom))


def read_crop(file: Path) -> Crop:
    """The crop in a file.

    Raises:
        UserError: the file is none of that kind.
    """
    try:
        found = parse_json(read_bytes(file, LARGEST_FILE))
        if set(found) != set(SIDES):
            raise ValueError("it does not name left, top, right and bottom and nothing else")
        return crop_of([found[side] for side in SIDES])
    except (UserError, ValueError) as error:
        why = error.what if isinstance(error, UserError) else str(error)
        raise UserError(
            f"this crop cannot be used: {why}", where=file, do="Draw it anew, or delete the file."
        ) from error


def write_crop(file: Path, crop: Crop) -> None:
    """Writes a crop's file; where a link is, the link is replaced. Raises ``SaveFailed``."""
    shares = {side: round(value, 5) for side, value in asdict(crop).items()}
    write_text(file, json.dumps(shares) + "\n", follow=False)


def file_for(image: Path) -> Path:
    """Where a new crop is written: by the image's whole name, which no two of a folder share."""
    return image.with_name(image.name + ENDING)


def owner_of(name: str) -> str | None:
    """The name, with or without its end, of the image that a file's name says it is the crop of;
    ``None`` for files that are none."""
    bare = name[: -len(ENDING)]
    return bare if bare and name.lower().endswith(ENDING) else None
