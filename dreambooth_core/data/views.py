"""Where an image is scaled and cut: the geometry, without pixels. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class View:
    """One way of looking at an image: scaled to cover ``size``, cut there, perhaps mirrored.

    ``top`` and ``left`` are pixels in the scaled image, before mirroring.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0
    flip: bool = False

    @property
    def size(self) -> Size:
        """(height, width) of the result."""
        return self.height, self.width

    @property
    def crop(self) -> tuple[int, int]:
        """(top, left) in the scaled image."""
        return self.top, self.left

    @property
    def key(self) -> str:
        """Text that tells views apart, for caches."""
        return f"{self.height}x{self.width}+{self.top}+{self.left}{'f' if self.flip else ''}"


def scaled(original: Size, target: Size) -> Size:
    """The smallest (height, width) of the original's shape that covers the target.

    One side is the target's exactly, the other is rounded and at least the target's.
    """
    height, width = original
    # Integers decide which side is the tight one, so that rounding never leaves a gap.
    if target[0] * width >= target[1] * height:
        return target[0], max(target[1], round(width * target[0] / height))
    return max(target[0], round(height * target[1] / width)), target[1]


def place(
    original: Size, target: Size, at: tuple[float, float] = (0.5, 0.5), *, flip: bool = False
) -> View:
    """The view of ``target`` size at a relative place: (0, 0) is top left, (1, 1) bottom right."""
    height, width = scaled(original, target)
    top = round((height - target[0]) * at[0])
    left = round((width - target[1]) * at[1])
    return View(target[0], target[1], top, left, flip)


def crop_top_left(original: Size, view: View) -> tuple[int, int]:
    """What SDXL is told of the crop: (top, left) in the scaled image as the net sees it.

    In a mirrored image the left edge is the right edge of the original.
    """
    if not view.flip:
        return view.crop
    width = scaled(original, view.size)[1]
    return view.top, width - view.width - view.left


def enlargement(original: Size, target: Size) -> float:
    """By how much the image is scaled; above 1 it is blown up."""
    return max(target[0] / original[0], target[1] / original[1])


def cut_share(original: Size, target: Size) -> float:
    """The share of the image's area that is cut away."""
    height, width = scaled(original, target)
    return 1.0 - (target[0] * target[1]) / (height * width)
