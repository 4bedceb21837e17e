"""What an inpainting UNet takes besides noise: a mask and the image with the masked part hidden.

Nine input channels: four of noisy latents, one of the mask (1 is to be drawn), four of the masked
image's latents (Rombach et al. 2022). Training draws the masks at random, as in the training of
the inpainting models: boxes and ellipses, now and then the whole image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth_core.families.components import Components

WHOLE = 0.25
"""Share of masks that hide everything, so that the model keeps drawing whole images."""
MOST_SHAPES = 4


def random_mask(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A mask ``[1, height, width]`` of zeros (kept) and ones (to be drawn)."""
    if float(torch.rand((), generator=generator)) < WHOLE:
        return torch.ones(1, height, width)
    mask = torch.zeros(1, height, width)
    count = int(torch.randint(1, MOST_SHAPES + 1, (), generator=generator))
    rows = torch.arange(height).unsqueeze(1)
    columns = torch.arange(width).unsqueeze(0)
    for _ in range(count):
        y, x, tall, wide, round_ = torch.rand(5, generator=generator).tolist()
        half_height, half_width = (0.2 + 0.8 * tall) * height / 2, (0.2 + 0.8 * wide) * width / 2
        down, across = (rows - y * height) / half_height, (columns - x * width) / half_width
        inside = (
            down**2 + across**2 <= 1 if round_ < 0.5 else (down.abs() <= 1) & (across.abs() <= 1)
        )
        mask[0][inside] = 1.0
    return mask


def conditions(parts: Components, pixels: Tensor, mask: Tensor) -> Tensor:
    """Mask and masked latents ``[5, height / 8, width / 8]`` of one image.

    Args:
        pixels: ``[3, height, width]`` in [-1, 1].
        mask: ``[1, height, width]``, 1 where the image is hidden.

    The autoencoder works in its own precision, whatever surrounds the call.
    """
    parameter = next(parts.vae.parameters())
    hidden = (pixels * (mask < 0.5)).unsqueeze(0).to(parameter.device, parameter.dtype)
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        # The mode: what is shown to the model is not a matter of chance.
        latents = parts.family.scaled(parts, parts.vae.encode(hidden).latent_dist.mode())[0]
    small = torch.nn.functional.interpolate(mask.unsqueeze(0), latents.shape[-2:])[0]
    return torch.cat([small.to(latents), latents]).float()
