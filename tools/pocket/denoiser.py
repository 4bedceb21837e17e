"""The UNet in the SD1 layout and the text tower that conditions it, trained together.

Latent diffusion (Rombach et al. 2022) with the epsilon objective (Ho et al. 2020). Each sample's
loss is weighted by (SNR + 1) / SNR, at most 20: the weight of the v objective (Salimans & Ho 2022;
compare min-SNR, Hang et al. 2023). Without it the few latent cells get right shapes in colours
drawn by lot, because a picture's colour is decided where noise is strongest, and there the plain
epsilon loss hardly counts the picture's error.

The first level is 64 wide, not 32: the hosts hard-code 32 norm groups, and a norm over one channel
would take the mean, hence the colour, out of the prediction.

The first part runs on 8x8 latents (64 px); then the text tower is locked and the UNet alone goes on
with 16x16 latents (128 px), some steps at 8x8 so that both sizes work.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .captions import caption
from .latents import Latents
from .training import Run
from .world import scene_number

SMALL_STEPS, LARGE_STEPS = 4200, 3400
SMALL_BATCH, LARGE_BATCH = 32, 16
SMALL_RATE, LARGE_RATE = 8e-4, 6e-4
SMALL_SHARE = 0.2
DROPOUT = 0.1
MAX_WEIGHT = 20.0


def build_text() -> CLIPTextModel:
    """An untrained CLIP text tower of width 64, two layers (3.3M parameters)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=64,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
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


def loss_weights(alphas_cumprod: torch.Tensor) -> torch.Tensor:
    """min((SNR + 1) / SNR, 20) for each time step: [1000] to [1000]."""
    return (1 / alphas_cumprod).clamp(max=MAX_WEIGHT)


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
    generator: torch.Generator,
) -> torch.Tensor:
    """Weighted epsilon loss of latents [n, 4, h, w] under text states [n, 77, 64]."""
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(0, len(alphas_cumprod), (len(latents),), generator=generator)
    alpha = alphas_cumprod[times][:, None, None, None]
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    error = unet(noisy, times, context).sample - noise
    return (loss_weights(alphas_cumprod)[times] * error.square().mean((1, 2, 3))).mean()


def train_small(folder: Path, material: Material) -> nn.ModuleDict:
    """First part, 64 px: trains (or resumes) "unet" and "text" together; averaged weights."""
    torch.manual_seed(2)
    both = nn.ModuleDict({"unet": build_unet(), "text": build_text()})
    run = Run("denoiser-64", both, folder, SMALL_STEPS, SMALL_RATE, floor=0.2)
    alphas = build_scheduler().alphas_cumprod
    for step in run.steps():
        rng, generator = run.random(step)
        indices = [rng.randrange(len(material.caches[64])) for _ in range(SMALL_BATCH)]
        context = both["text"](material.captions(indices, rng)).last_hidden_state
        latents = material.caches[64].sample(indices, generator)
        run.optimise(step, denoising_loss(both["unet"], context, latents, alphas, generator))
    run.use_average()
    return both


def train_large(folder: Path, material: Material, both: nn.ModuleDict) -> UNet2DConditionModel:
    """Second part, 128 px with some steps at 64 px: the UNet alone, the text tower locked."""
    torch.manual_seed(3)
    unet, text = both["unet"], both["text"].eval()
    run = Run("denoiser-128", unet, folder, LARGE_STEPS, LARGE_RATE)
    alphas = build_scheduler().alphas_cumprod
    for step in run.steps():
        rng, generator = run.random(step)
        side, batch = (64, SMALL_BATCH) if rng.random() < SMALL_SHARE else (128, LARGE_BATCH)
        indices = [rng.randrange(len(material.caches[side])) for _ in range(batch)]
        with torch.no_grad():
            context = text(material.captions(indices, rng)).last_hidden_state
        latents = material.caches[side].sample(indices, generator)
        run.optimise(step, denoising_loss(unet, context, latents, alphas, generator))
    run.use_average()
    return unet
