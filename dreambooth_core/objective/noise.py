"""Noise of one training sample. Every function takes the sample's own generator.

Shapes are ``[C, H, W]``, fp32, on the CPU: the numbers of a CPU and a GPU generator differ,
and a result should depend on neither the device nor the batch that a sample is in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def gaussian(shape: torch.Size | tuple[int, ...], generator: Generator) -> Tensor:
    """Unit Gaussian noise of ``shape``."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def offset(noise: Tensor, strength: float, generator: Generator) -> Tensor:
    """``noise`` plus one Gaussian number per channel, times ``strength``.

    Guttenberg 2023, "Diffusion with Offset Noise": with independent noise alone a model never
    learns to change an image's mean.
    """
    shift = gaussian((*noise.shape[:-2], 1, 1), generator)
    return noise + strength * shift


def pyramid(noise: Tensor, discount: float, levels: int, generator: Generator) -> Tensor:
    """``noise`` plus ever coarser noise, brought back to unit variance.

    Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training": level ``i`` has the
    size divided by ``r**i`` with ``r`` drawn from [2, 4), is stretched to the full size, and
    counts ``discount**i``. Ends where a side has shrunk to one.
    """
    height, width = noise.shape[-2:]
    total = noise.clone()
    for level in range(1, levels + 1):
        factor = float(torch.rand((), generator=generator)) * 2.0 + 2.0
        size = (max(1, int(height / factor**level)), max(1, int(width / factor**level)))
        coarse = gaussian((*noise.shape[:-2], *size), generator)
        stretched = F.interpolate(
            coarse[None], size=(height, width), mode="bilinear", align_corners=False
        )[0]
        total += stretched * discount**level
        if min(size) == 1:
            break
    return total / total.std()


def perturbed(noise: Tensor, strength: float, generator: Generator) -> Tensor:
    """The noise that the model is shown, where ``noise`` is what it is asked for.

    Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models"
    (arXiv:2301.11706).
    """
    return noise + strength * gaussian(noise.shape, generator)
