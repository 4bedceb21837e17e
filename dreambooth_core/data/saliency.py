"""Where in an image the subject is: crops to suggest, from colours alone, without a model.

The edges of a photograph mostly show what is behind the subject (the boundary prior of Wei et al.
2012). So the colours along each of the four edges are described by mean and covariance, and a place
stands out by how far its colour is from them (Mahalanobis). The second nearest edge decides: a
subject that runs out of the image on one side still stands out from the other three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from dreambooth_core.data.crops import Crop

Map = NDArray[np.float64]

SIDE = 96
"""Pixels of the longer side of the copy that is looked at."""
EDGE = 0.05
"""Of a side: how wide the strips along the edges are."""
NOISE = 16.0
"""Added to each variance of colours of 0 to 255: what no eye tells apart."""
PLAIN = 3.0
"""Standard deviations from the edges' colours below which nothing stands out."""
TAILS = 0.02
"""Of what stands out, on each side, that may be left outside: specks."""
ALL = 0.9
"""A part that is so much of the image is no crop."""


@dataclass(frozen=True)
class Wish:
    """What a suggested crop should be like."""

    margin: float = 0.1
    """Around the subject on each side, as a share of its own width and height."""
    ratio: float | None = None
    """Width to height; ``None``: as the subject is."""
    least: int = 0
    """Pixels of each side that it should have, as far as the image has them."""

    def around(self, subject: Crop, width: int, height: int) -> Crop:
        """A crop of an image of that size with the subject in its middle, as far as that goes."""
        wide = (subject.right - subject.left) * width * (1 + 2 * self.margin)
        high = (subject.bottom - subject.top) * height * (1 + 2 * self.margin)
        wide, high = max(wide, self.least), max(high, self.least)
        if self.ratio is not None:
            wide, high = max(wide, high * self.ratio), max(high, wide / self.ratio)
        wide, high = min(wide, width), min(high, height)
        left, right = _moved((subject.left + subject.right) / 2 * width, wide, width)
        top, bottom = _moved((subject.top + subject.bottom) / 2 * height, high, height)
        return Crop(
            round(left / width, 5),
            round(top / height, 5),
            round(right / width, 5),
            round(bottom / height, 5),
        )


def suggest(image: Image.Image, wish: Wish, mask: Image.Image | None = None) -> Crop | None:
    """The part of an RGB image that shows the subject; ``None`` where nothing stands out, or
    nearly everything does.

    Args:
        mask: grey, white where the subject is, where that is known.
    """
    if mask is not None:
        found, tails = _marked(mask), 0.0
    else:
        found, tails = saliency(image), TAILS
    bounds = None if found is None else _bounds(found, tails)
    if bounds is None:
        return None
    crop = wish.around(bounds, image.width, image.height)
    share = (crop.right - crop.left) * (crop.bottom - crop.top)
    return None if share > ALL else crop


def saliency(image: Image.Image) -> Map | None:
    """How far each place stands out, [height, width] of a small copy, 0 where it does not; ``None``
    where nothing does."""
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    if min(small.size) < 4:
        return None
    colours = np.asarray(small.filter(ImageFilter.GaussianBlur(1.0)), dtype=np.float64)
    height, width = colours.shape[:2]
    down, across = max(round(EDGE * height), 1), max(round(EDGE * width), 1)
    edges = (colours[:down], colours[-down:], colours[:, :across], colours[:, -across:])
    far = np.sort([_distance(colours, edge.reshape(-1, 3)) for edge in edges], axis=0)[1]
    standing = far * (far >= max(_otsu(far), PLAIN))
    return standing if standing.any() else None


def _distance(colours: Map, known: Map) -> Map:
    """Mahalanobis distance of colours [h, w, 3] from known ones [n, 3]."""
    off = colours - known.mean(axis=0)
    inverse = np.linalg.inv(np.cov(known, rowvar=False, bias=True) + NOISE * np.eye(3))
    squared = np.einsum("hwi,ij,hwj->hw", off, inverse, off)
    distance: Map = np.sqrt(np.maximum(squared, 0.0))
    return distance


def _otsu(values: Map) -> float:
    """The threshold that parts values best into two kinds (Otsu 1979): the variance between the
    kinds is largest."""
    ordered = np.sort(values, axis=None)
    count = np.arange(1, len(ordered))
    sums = np.cumsum(ordered)
    below = sums[:-1] / count
    above = (sums[-1] - sums[:-1]) / (len(ordered) - count)
    between = count * (len(ordered) - count) * (above - below) ** 2
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)


def _marked(mask: Image.Image) -> Map | None:
    small = mask.convert("L")
    small.thumbnail((4 * SIDE, 4 * SIDE), Image.Resampling.BOX)
    found: Map = np.where(np.asarray(small) >= 128, 1.0, 0.0)
    return found if found.any() else None


def _bounds(found: Map, tails: float) -> Crop:
    """The box that holds all but the tails of what stands out, to each side."""
    left, right = _range(found.sum(axis=0), tails)
    top, bottom = _range(found.sum(axis=1), tails)
    return Crop(left, top, right, bottom)


def _range(weights: Map, tails: float) -> tuple[float, float]:
    """From where to where, in shares of the whole, all but the tails of weights lie."""
    forth = np.cumsum(weights) / weights.sum()
    back = np.cumsum(weights[::-1]) / weights.sum()
    outside = int((forth <= tails).sum()), int((back <= tails).sum())
    return outside[0] / len(weights), 1.0 - outside[1] / len(weights)


def _moved(middle: float, length: float, whole: float) -> tuple[float, float]:
    """A stretch around a middle, moved until it lies within 0 to ``whole``."""
    start = min(max(middle - length / 2, 0.0), whole - length)
    return start, min(start + length, whole)
