"""The noise schedule: how much of an image is left at each timestep.

Notation of Ho et al. 2020 (arXiv:2006.11239): a noisy latent is
``sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import UserError


def alphas_cumprod(
    steps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
) -> Tensor:
    """``alpha_bar`` of each timestep, shape ``[steps]``, fp32, from a scheduler's config.

    The defaults are Stable Diffusion's. ``scaled_linear`` is linear in the square root of beta.

    Raises:
        UserError: ``beta_schedule`` is neither ``linear`` nor ``scaled_linear``.
    """
    if beta_schedule == "scaled_linear":
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float32) ** 2
    elif beta_schedule == "linear":
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float32)
    else:
        raise UserError(
            f"the base's beta schedule {beta_schedule!r} is not known",
            do="Known are scaled_linear and linear.",
        )
    return torch.cumprod(1.0 - betas, dim=0)


def alphas_of(scheduler: Mapping[str, Any]) -> Tensor:
    """``alpha_bar`` of a base, from its scheduler's configuration; what that leaves out is Stable
    Diffusion's. Raises ``UserError`` as :func:`alphas_cumprod`."""
    return alphas_cumprod(
        int(scheduler.get("num_train_timesteps", 1000)),
        float(scheduler.get("beta_start", 0.00085)),
        float(scheduler.get("beta_end", 0.012)),
        str(scheduler.get("beta_schedule", "scaled_linear")),
    )


def rescale_to_zero_terminal_snr(alphas_bar: Tensor) -> Tensor:
    """The schedule with its last step made pure noise and its first kept. Shape ``[T]``.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps Are Flawed"
    (arXiv:2305.08891), algorithm 1: shift and stretch ``sqrt(alpha_bar)``.
    """
    root = alphas_bar.double().sqrt()
    first, last = root[0], root[-1]
    return (((root - last) * (first / (first - last))) ** 2).to(alphas_bar.dtype)


def snr(alphas_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio ``alpha_bar / (1 - alpha_bar)``, same shape, fp32."""
    kept = alphas_bar.float()
    return kept / (1.0 - kept)


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """``values`` ``[B]`` with as many trailing dimensions of size 1 as ``like`` has."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def add_noise(latents: Tensor, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """Noisy latents. ``latents`` and ``noise`` ``[B, ...]``, ``alphas_bar`` ``[B]``."""
    kept = per_sample(alphas_bar, latents)
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise
