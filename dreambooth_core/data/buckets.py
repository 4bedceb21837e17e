"""Sizes for images of any shape: aspect-ratio buckets (as NovelAI described them in 2022).

Every bucket has at most as many pixels as the wanted square, so that memory is bounded by the
square; an image goes to the bucket that cuts the least off it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dreambooth_core.data.options import LATENT_FACTOR, DataOptions
from dreambooth_core.data.plan import Size, scaled
from dreambooth_core.errors import UserError


def bucket_sizes(area: int, step: int, longest: int) -> list[Size]:
    """All (height, width), multiples of ``step``, that are as large as ``area`` allows.

    For each width the tallest height that fits, and the same turned; sorted.

    Raises:
        UserError: Not even a square of one step fits.
    """
    if step < LATENT_FACTOR or step % LATENT_FACTOR:
        raise UserError(
            f"{step} is not a multiple of {LATENT_FACTOR}",
            where="data.bucket_reso_steps",
            do="64 suits every Stable Diffusion UNet.",
        )
    sizes: set[Size] = set()
    for width in range(step, max(longest, step) + 1, step):
        height = min(area // width // step, max(longest // step, 1)) * step
        if height >= step:
            sizes |= {(height, width), (width, height)}
    if not sizes:
        raise UserError(
            f"no bucket of {step} × {step} pixels fits into {area} pixels",
            where="data.bucket_reso_steps",
            do="Raise data.resolution or lower data.bucket_reso_steps.",
        )
    # Those that no other one surpasses on both sides: the others only waste pixels.
    kept: list[Size] = []
    for size in sorted(sizes, reverse=True):
        if not kept or size[1] > kept[-1][1]:
            kept.append(size)
    return kept[::-1]


def choose(original: Size, sizes: Sequence[Size]) -> Size:
    """The size that cuts the least off an image of ``original`` (height, width).

    Among equals the one with more pixels; then the first.
    """
    shape = math.log(original[1] / original[0])
    return min(
        sizes,
        key=lambda size: (
            round(abs(math.log(size[1] / size[0]) - shape), 9),
            -size[0] * size[1],
            size,
        ),
    )


def sizes_for(options: DataOptions) -> list[Size]:
    """The sizes that images are given, as the options say.

    Raises:
        UserError: sizes that no autoencoder can take.
    """
    fixed = options.fixed_size()
    if options.crop != "bucket":
        return [fixed]
    longest = round(max(fixed) * options.bucket_stretch)
    found = set(bucket_sizes(fixed[0] * fixed[1], options.bucket_reso_steps, longest))
    # The size that was asked for is always there, also where the step does not divide it.
    return sorted(found | {fixed})


def enlargement(original: Size, target: Size) -> float:
    """By how much the image is scaled; above 1 it is blown up."""
    return max(target[0] / original[0], target[1] / original[1])


def cut_share(original: Size, target: Size) -> float:
    """The share of the image's area that is cut away."""
    height, width = scaled(original, target)
    return 1.0 - (target[0] * target[1]) / (height * width)
