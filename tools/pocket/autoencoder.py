"""The KL autoencoder of latent diffusion (Rombach et al. 2022), four levels, f = 8.

Loss: L1 on pixels and on their differences to neighbours (edges matter in drawings), and a small
KL term (Kingma & Welling 2013).

All levels are 64 wide and have no resblock in the encoder, one in the decoder. The hosts hard-code
32 norm groups, so 32 channels would mean one channel a group: the norm before the last layer then
removes every channel's mean, and with it the picture's colours (1,300 steps gave gray pictures).

Afterwards a per-channel shift and scale is folded into
``quant_conv`` and ``post_quant_conv``, so latents times 0.18215 have mean 0 and deviation 1: every
host hard-codes that factor.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from .painting import paint
from .training import Run
from .world import random_scene

SCALING_FACTOR = 0.18215
STEPS = 2600
REFINE_STEPS = 500
BATCH = 16
SIDE = 64


def build() -> AutoencoderKL:
    """An untrained autoencoder, 0.86M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 64, 64, 64),
        layers_per_block=0,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=128,
        scaling_factor=SCALING_FACTOR,
    )


def to_tensor(pictures: list[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size to floats [n, 3, h, w] in -1..1."""
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def shrink(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """The whole picture at a smaller size."""
    return picture.resize((side, side), Image.Resampling.LANCZOS)


def _recolour(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Channels permuted, some inverted: any colour anywhere. [h, w, 3] uint8."""
    pixels = pixels[:, :, rng.sample(range(3), 3)]
    flip = np.array([rng.random() < 0.3 for _ in range(3)])
    return np.where(flip, 255 - pixels, pixels)


def training_picture(rng: random.Random, featured: float = 0.5, crops: float = 0.5) -> Image.Image:
    """A 64 px crop or a whole picture at 64 px; some in foreign colours."""
    picture = paint(random_scene(rng, featured), 128)
    if rng.random() < crops:
        x, y = rng.randint(0, 128 - SIDE), rng.randint(0, 128 - SIDE)
        picture = picture.crop((x, y, x + SIDE, y + SIDE))
    else:
        picture = shrink(picture)
    if rng.random() < 0.3:
        picture = Image.fromarray(np.ascontiguousarray(_recolour(np.asarray(picture), rng)))
    return picture


def loss_of(model: AutoencoderKL, batch: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Reconstruction and KL of a batch [n, 3, 64, 64]."""
    posterior = model.encode(batch).latent_dist
    latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=noise)
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    return difference(model.decode(latents).sample, batch) + 2e-4 * kl


def difference(output: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 of pixels and of their steps to the right and downwards; pictures [n, 3, h, w]."""
    error = output - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + 0.5 * edges


def train(folder: Path, steps: int = STEPS) -> AutoencoderKL:
    """Trains (or resumes) the autoencoder; returns it with averaged weights, not yet folded."""
    torch.manual_seed(1)
    model = build()
    model.to(memory_format=torch.channels_last)
    run = Run("autoencoder", model, folder, steps, rate=1.2e-3, decay=0.998, every=100)
    for step in run.steps():
        rng, noise = run.random(step)
        batch = to_tensor([training_picture(rng) for _ in range(BATCH)])
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, batch, noise)
        run.optimise(step, loss)
    run.use_average()
    return model


def refine_decoder(folder: Path, model: AutoencoderKL) -> AutoencoderKL:
    """Goes on with the decoder alone, on richer pictures; latents stay what they are.

    (As Stable Diffusion's own decoders were refined after its UNet.) Faces and second colours are
    few in the world and small in a picture, so most pictures here have them.
    """
    torch.manual_seed(6)
    model.requires_grad_(False)
    for part in (model.decoder, model.post_quant_conv):
        part.requires_grad_(True)
    model.to(memory_format=torch.channels_last)
    run = Run("decoder", model, folder, REFINE_STEPS, rate=8e-4, decay=0.998, every=100)
    for step in run.steps():
        rng, noise = run.random(step)
        drawn = [training_picture(rng, featured=0.75, crops=0.75) for _ in range(BATCH)]
        batch = to_tensor(drawn).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = model.encode(batch).latent_dist.sample(noise)
            loss = difference(model.decode(latents).sample, batch)
        run.optimise(step, loss)
    run.use_average()
    model.to(memory_format=torch.contiguous_format)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def fold_statistics(model: AutoencoderKL, means: torch.Tensor, stds: torch.Tensor) -> None:
    """Makes latents unit normal times 1 / 0.18215 per channel; decoding stays exactly the same.

    ``means`` and ``stds`` [4] are those of the raw posterior samples. The 1x1 ``quant_conv``
    outputs (mean, logvar), so the mean's rows are scaled by k = 1 / (0.18215 std) and shifted, the
    log-variances grow by 2 log k, and ``post_quant_conv`` undoes it.
    """
    k = 1 / (SCALING_FACTOR * stds)
    quant, post = model.quant_conv, model.post_quant_conv
    quant.weight[:4] *= k[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - means) * k
    quant.bias[4:] += 2 * k.log()
    post.bias += (post.weight[:, :, 0, 0] * means).sum(1)
    post.weight /= k[None, :, None, None]
