"""The UNet in the SD1 layout, trained under a locked text tower that has learned to read.

Latent diffusion (Rombach et al. 2022) with the epsilon objective (Ho et al. 2020). Each sample's
loss is weighted by (SNR + 1) / SNR, at most 20: the weight of the v objective (Salimans & Ho 2022;
compare min-SNR, Hang et al. 2023). Without it the few latent cells get right shapes in colours
drawn by lot, because a picture's colour is decided where noise is strongest, and there the plain
epsilon loss hardly counts the picture's error.

The first level is 64 wide, not 32: the hosts hard-code 32 norm groups, and a norm over one channel
would take the mean, hence the colour, out of the prediction.

The first part runs on 8x8 latents (64 px) and soon knows colours and backgrounds; shapes need the
second, on 16x16 latents (128 px), which leans to the noise levels at which shapes are decided and
keeps some steps at 8x8, so that both sizes work.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from .captions import caption
from .latents import Latents
from .training import Run
from .world import scene_number

BATCHES = {64: 32, 128: 16}
DROPOUT = 0.1


@dataclass(frozen=True)
class Part:
    """One part of the training; the next begins with its averaged weights.

    ``small``: share of steps at 64 px. ``focus``: share of time steps drawn logit-normally, about
    the middle, where shapes are decided (Esser et al. 2024), the rest evenly. ``most``: the
    greatest weight of a sample.
    """

    name: str
    steps: int
    rate: float
    floor: float = 0.02
    small: float = 1.0
    focus: float = 0.0
    most: float = 20.0


PARTS = (
    Part("denoiser-64", 800, 8e-4, floor=0.5),
    Part("denoiser-128", 4600, 8e-4, small=0.1, focus=0.5, most=10),
)


def build_unet() -> UNet2DConditionModel:
    """An untrained UNet in SD1's shape (6.6M parameters)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(64, 64, 96, 96),
        layers_per_block=2,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def build_scheduler() -> DDIMScheduler:
    """SD1's noise schedule, sampled with trailing time steps (Lin et al. 2023)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def loss_weights(alphas_cumprod: torch.Tensor, most: float) -> torch.Tensor:
    """min((SNR + 1) / SNR, most) for each time step: [1000] to [1000]."""
    return (1 / alphas_cumprod).clamp(max=most)


def draw_times(count: int, steps: int, focus: float, generator: torch.Generator) -> torch.Tensor:
    """Time steps [count]: evenly drawn, a share ``focus`` of them logit-normally."""
    times = torch.randint(0, steps, (count,), generator=generator)
    if focus == 0:
        return times
    middle = (
        torch.randn(count, generator=generator).sigmoid().mul(steps).long().clamp(max=steps - 1)
    )
    return torch.where(torch.rand(count, generator=generator) < focus, middle, times)


@dataclass
class Material:
    """What a training step draws from."""

    tokenizer: CLIPTokenizer
    rare: list[str]
    caches: dict[int, Latents]

    def captions(self, indices: list[int], rng: random.Random) -> torch.Tensor:
        """Token ids [n, 77] of these pictures' captions; a tenth of them empty."""
        texts = [
            "" if rng.random() < DROPOUT else caption(scene_number(i), rng, self.rare)
            for i in indices
        ]
        tokens = self.tokenizer(
            texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        return tokens.input_ids


def denoising_loss(
    unet: UNet2DConditionModel,
    context: torch.Tensor,
    latents: torch.Tensor,
    alphas_cumprod: torch.Tensor,
    part: Part,
    generator: torch.Generator,
) -> torch.Tensor:
    """Weighted epsilon loss of latents [n, 4, h, w] under text states [n, 77, 64]."""
    noise = torch.randn(latents.shape, generator=generator)
    times = draw_times(len(latents), len(alphas_cumprod), part.focus, generator)
    alpha = alphas_cumprod[times][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    error = unet(noisy, times, context).sample - noise
    weights = loss_weights(alphas_cumprod, part.most)[times]
    return (weights * error.square().mean((1, 2, 3))).mean()


def train(
    folder: Path,
    material: Material,
    text: CLIPTextModel,
    unet: UNet2DConditionModel,
    part: Part,
) -> UNet2DConditionModel:
    """Trains (or resumes) one part under the locked text tower; returns averaged weights."""
    torch.manual_seed(3)
    run = Run(part.name, unet, folder, part.steps, part.rate, floor=part.floor)
    alphas = build_scheduler().alphas_cumprod
    for step in run.steps():
        rng, generator = run.random(step)
        side = 64 if part.small == 1 or rng.random() < part.small else 128
        cache = material.caches[side]
        indices = [rng.randrange(len(cache)) for _ in range(BATCHES[side])]
        with torch.no_grad():
            context = text(material.captions(indices, rng)).last_hidden_state
        latents = cache.sample(indices, generator)
        run.optimise(step, denoising_loss(unet, context, latents, alphas, part, generator))
    run.use_average()
    return unet
