"""What is wrong with images that can be used: blurred, too dark or bright, nearly the same twice.

All is measured on a small grey copy, so that hundreds of photographs take seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dreambooth_core.data.images import load_rgb
from dreambooth_core.data.inventory import ImageFile
from dreambooth_core.errors import UserError

Grey = NDArray[np.float32]

SIDE = 256
"""Pixels of the longer side of the copy."""
BLURRED = 25.0
"""The variance of the Laplacian (Pech-Pacheco et al. 2000) below which nothing is sharp; of 8-bit
grey at that size. Sharp photographs have hundreds."""
DARK, BRIGHT = 60.0, 200.0
"""Grey that 95% of a dark image is below, and of a bright one above."""
ALIKE = 8
"""Of 128 bits of two fingerprints, how many may differ between versions of one image."""
PLAIN = 4.0
"""The deviation of grey below which an image shows nothing, and has no fingerprint."""


@dataclass(frozen=True)
class Finding:
    """Something about one image that a person should know."""

    name: str
    what: str
    do: str

    @property
    def line(self) -> str:
        """In one line."""
        return f"{self.name} {self.what}. {self.do}"


def examine(files: Sequence[ImageFile], background: str = "white") -> list[Finding]:
    """What should be told of these images, in their order."""
    found: list[Finding] = []
    seen: list[tuple[ImageFile, NDArray[np.bool_]]] = []
    for file in files:
        try:
            image = load_rgb(file, background).convert("L")
        except UserError:
            continue  # it was told why when stock was taken, or has gone since
        image.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        grey: Grey = np.asarray(image, dtype=np.float32)
        found += [Finding(file.name, *each) for each in _seen_in(grey)]
        if grey.std() < PLAIN:
            continue
        mark = fingerprint(image)
        for other, known in seen:
            same = file.pixels_hash == other.pixels_hash  # told as such elsewhere
            if not same and int((mark != known).sum()) <= ALIKE:
                what = f"is nearly the same image as {other.name}"
                found.append(Finding(file.name, what, "Keep the better one."))
                break
        seen.append((file, mark))
    return found


def _seen_in(grey: Grey) -> list[tuple[str, str]]:
    """What is wrong with one image, and what to do."""
    if grey.std() < PLAIN:
        return [("shows hardly anything", "Leave it out.")]
    found = []
    if np.percentile(grey, 95) < DARK:
        found.append(("is very dark", "Brighten it, or leave it out."))
    elif np.percentile(grey, 5) > BRIGHT:
        found.append(("is very bright", "Darken it, or leave it out."))
    elif sharpness(grey) < BLURRED:
        found.append(("looks blurred", "The result would learn the blur: take a sharper one."))
    return found


def sharpness(grey: Grey) -> float:
    """The variance of the Laplacian of ``grey`` ``[height, width]``; 0 for less than 3 pixels."""
    if min(grey.shape) < 3:
        return 0.0
    middle = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4.0 * middle).var())


def fingerprint(image: Image.Image) -> NDArray[np.bool_]:
    """128 bits that scaling, compression and brightness hardly change: whether each of 8 x 8 places
    is brighter than the next, across and down."""
    across = np.asarray(image.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    down = np.asarray(image.resize((8, 9), Image.Resampling.BOX), dtype=np.int16)
    return np.concatenate(
        [(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()]
    )
