"""Diffusion: noise by the schedule of a base that predicts epsilon, v or the clean latents.

Notation of Ho et al. 2020 (arXiv:2006.11239): a noisy latent is
``sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * noise``. Salimans & Ho 2022 (arXiv:2202.00512) define
``v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0``. What follows the class are the functions
that it is made of: schedule, targets and weights. Shapes are ``[B, ...]``, ``alphas_bar`` ``[B]``.

An error in the predicted image x0 shows up in the three targets as

    |d_eps|² = SNR * |d_x0|²        |d_v|² = (SNR + 1) * |d_x0|²

so a weighting that is stated for one prediction type is right for all of them once it is divided by
that factor. Weights take and return ``[B]``, fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.errors import UserError
from dreambooth_core.objective.objective import (
    NoisySample,
    Objective,
    huber_threshold,
    per_sample,
    position,
    unknown_weighting,
)
from dreambooth_core.objective.options import DIFFUSION_WEIGHTINGS, ObjectiveOptions

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


class Diffusion(Objective):
    """Noise, target, weight and loss of a batch for a diffusion base.

    Args:
        options: the ``objective`` section of the configuration.
        alphas_cumprod: the base's noise schedule, ``[T]``.
        prediction_type: what the base predicts: ``epsilon``, ``v_prediction`` or ``sample``.

    Raises:
        UserError: ``zero_terminal_snr`` with an epsilon base; an empty range of timesteps; an
            unknown prediction type; a weighting or a shift of rectified flow.
    """

    def __init__(
        self, options: ObjectiveOptions, alphas_cumprod: Tensor, prediction_type: str
    ) -> None:
        super().__init__(options)
        if prediction_type not in PREDICTION_TYPES:
            raise UserError(
                f"the prediction type {prediction_type!r} is not known",
                do=f"Known are {', '.join(PREDICTION_TYPES)}.",
            )
        self.prediction_type = prediction_type
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        self.range = options.timestep_range(self.steps)
        if options.shift not in ("auto", "none"):
            raise UserError(
                "a timestep shift is for rectified-flow bases, and this is a diffusion base",
                where="objective.shift",
                do="Leave it at auto.",
            )
        if options.zero_terminal_snr:
            if prediction_type == "epsilon":
                raise UserError(
                    "zero terminal SNR cannot be trained on a base that predicts epsilon: "
                    "in pure noise there is nothing of the image left to tell apart",
                    where="objective.zero_terminal_snr",
                    do="Switch it off, or take a base with v-prediction.",
                )
            self.alphas_cumprod = rescale_to_zero_terminal_snr(self.alphas_cumprod)
        self.snr = snr_of(self.alphas_cumprod)
        weights(self.snr[:1], prediction_type, options)

    @property
    def steps(self) -> int:
        """Number of timesteps of the"""
        return int(self.alphas_cumprod.shape[0])

    def timesteps(self, positions: Sequence[float], shape: torch.Size) -> Tensor:
        low, high = self.range
        drawn = [low + int(position(p, self.options) * (high - low + 1)) for p in positions]
        return torch.tensor(drawn, dtype=torch.int64)

    def sample(
        self, latents: Tensor, asked: Tensor, shown: Tensor, timesteps: Tensor
    ) -> NoisySample:
        on, options = latents.device, self.options
        kept = self.alphas_cumprod[timesteps]
        kept_there = send(kept, on)
        clean = latents.float()
        return NoisySample(
            noisy=add_noise(clean, shown, kept_there).to(latents.dtype),
            target=target(self.prediction_type, clean, asked, kept_there),
            timesteps=send(timesteps, on),
            noise=asked,
            weights=send(weights(self.snr[timesteps], self.prediction_type, options), on),
            thresholds=send(huber_threshold(options, timesteps, kept, self.steps), on),
        )


def alphas_of(scheduler: Mapping[str, Any]) -> Tensor:
    """``alpha_bar`` of each timestep, shape ``[steps]``, fp32, from a base's scheduler's
    configuration; what that leaves out is Stable Diffusion's. ``scaled_linear`` is linear in the
    square root of beta.

    Raises:
        UserError: ``beta_schedule`` is neither ``linear`` nor ``scaled_linear``.
    """
    steps = int(scheduler.get("num_train_timesteps", 1000))
    start, end = (
        float(scheduler.get("beta_start", 0.00085)),
        float(scheduler.get("beta_end", 0.012)),
    )
    schedule = str(scheduler.get("beta_schedule", "scaled_linear"))
    if schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float32) ** 2
    elif schedule == "linear":
        betas = torch.linspace(start, end, steps, dtype=torch.float32)
    else:
        raise UserError(
            f"the base's beta schedule {schedule!r} is not known",
            do="Known are scaled_linear and linear.",
        )
    return torch.cumprod(1.0 - betas, dim=0)


def rescale_to_zero_terminal_snr(alphas_bar: Tensor) -> Tensor:
    """The schedule with its last step made pure noise and its first kept. Shape ``[T]``.

    Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps Are Flawed"
    (arXiv:2305.08891), algorithm 1: shift and stretch ``sqrt(alpha_bar)``.
    """
    root = alphas_bar.double().sqrt()
    first, last = root[0], root[-1]
    return (((root - last) * (first / (first - last))) ** 2).to(alphas_bar.dtype)


def snr_of(alphas_bar: Tensor) -> Tensor:
    """Signal-to-noise ratio ``alpha_bar / (1 - alpha_bar)``, same shape, fp32."""
    kept = alphas_bar.float()
    return kept / (1.0 - kept)


def add_noise(latents: Tensor, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """Noisy latents. ``latents`` and ``noise`` ``[B, ...]``, ``alphas_bar`` ``[B]``."""
    kept = per_sample(alphas_bar, latents)
    return kept.sqrt() * latents + (1.0 - kept).sqrt() * noise


def target(prediction_type: str, latents: Tensor, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """The target for clean ``latents`` and the ``noise`` that was added to them."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    kept = per_sample(alphas_bar, latents)
    return kept.sqrt() * noise - (1.0 - kept).sqrt() * latents


def min_snr(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"
    (arXiv:2303.09556): ``min(SNR, gamma)`` on x0.

    Epsilon: ``min(SNR, gamma) / SNR``, which is 1 at zero SNR; v: ``min(SNR, gamma) /
    (SNR + 1)``; sample: ``min(SNR, gamma)``.
    """
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    if prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1.0)
    return snr.clamp(max=gamma)


def debiased(snr: Tensor, prediction_type: str, cap: float = 20.0) -> Tensor:
    """Yu et al. 2024, "Debias the Training of Diffusion Models" (arXiv:2310.08442):
    ``1 / sqrt(SNR)`` on epsilon, at most ``cap``; the same weight on x0 for the others.

    Epsilon: ``1 / sqrt(SNR)``; v: ``sqrt(SNR) / (SNR + 1)``; sample: ``sqrt(SNR)``.
    """
    on_epsilon = snr.rsqrt().clamp(max=cap)
    if prediction_type == "epsilon":
        return on_epsilon
    on_sample = snr * on_epsilon
    return on_sample / (snr + 1.0) if prediction_type == "v_prediction" else on_sample


def v_equivalent(snr: Tensor, prediction_type: str, cap: float = 20.0) -> Tensor:
    """The weight that v-prediction has by itself (Salimans & Ho 2022, section 4).

    Epsilon: ``(SNR + 1) / SNR``, at most ``cap``; v: 1; sample: ``SNR + 1``, at most ``cap``.
    Epsilon's own loss hardly counts errors of the image where noise prevails, and there its
    colours and composition are decided.
    """
    if prediction_type == "v_prediction":
        return torch.ones_like(snr)
    natural = (snr + 1.0) / snr if prediction_type == "epsilon" else snr + 1.0
    return natural.clamp(max=cap)


def weights(snr: Tensor, prediction_type: str, options: ObjectiveOptions) -> Tensor:
    """The weights that ``objective.weighting`` names."""
    if options.weighting == "none":
        return torch.ones_like(snr)
    if options.weighting == "min_snr":
        return min_snr(snr, prediction_type, options.min_snr_gamma)
    if options.weighting == "debiased_estimation":
        return debiased(snr, prediction_type, options.max_weight)
    if options.weighting == "v_equivalent":
        return v_equivalent(snr, prediction_type, options.max_weight)
    raise unknown_weighting(options.weighting, "diffusion", DIFFUSION_WEIGHTINGS)
