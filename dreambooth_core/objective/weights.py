"""How much a sample's loss counts, by its signal-to-noise ratio.

An error in the predicted image x0 shows up in the three targets as

    |d_eps|² = SNR * |d_x0|²        |d_v|² = (SNR + 1) * |d_x0|²

so a weighting that is stated for one prediction type is right for all of them once it is
divided by that factor. All functions take and return ``[B]``, fp32.

Rectified flow has a share of noise instead of a ratio, and one target: :func:`flow`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.objective.options import DIFFUSION_WEIGHTINGS, FLOW_WEIGHTINGS
from dreambooth_core.objective.targets import check


def min_snr(snr: Tensor, prediction_type: str, gamma: float = 5.0) -> Tensor:
    """Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy"
    (arXiv:2303.09556): ``min(SNR, gamma)`` on x0.

    Epsilon: ``min(SNR, gamma) / SNR``, which is 1 at zero SNR; v: ``min(SNR, gamma) /
    (SNR + 1)``; sample: ``min(SNR, gamma)``.
    """
    if check(prediction_type) == "epsilon":
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
    if check(prediction_type) == "epsilon":
        return on_epsilon
    on_sample = snr * on_epsilon
    return on_sample / (snr + 1.0) if prediction_type == "v_prediction" else on_sample


def v_equivalent(snr: Tensor, prediction_type: str, cap: float = 20.0) -> Tensor:
    """The weight that v-prediction has by itself (Salimans & Ho 2022, section 4).

    Epsilon: ``(SNR + 1) / SNR``, at most ``cap``; v: 1; sample: ``SNR + 1``, at most ``cap``.
    Epsilon's own loss hardly counts errors of the image where noise prevails, and there its
    colours and composition are decided.
    """
    if check(prediction_type) == "v_prediction":
        return torch.ones_like(snr)
    natural = (snr + 1.0) / snr if prediction_type == "epsilon" else snr + 1.0
    return natural.clamp(max=cap)


def weights(snr: Tensor, prediction_type: str, weighting: str, gamma: float, cap: float) -> Tensor:
    """The weights that ``objective.weighting`` names."""
    if weighting == "none":
        return torch.ones_like(snr)
    if weighting == "min_snr":
        return min_snr(snr, prediction_type, gamma)
    if weighting == "debiased_estimation":
        return debiased(snr, prediction_type, cap)
    if weighting == "v_equivalent":
        return v_equivalent(snr, prediction_type, cap)
    raise _unknown(weighting, "diffusion", DIFFUSION_WEIGHTINGS)


def flow(noise_share: Tensor, weighting: str, cap: float) -> Tensor:
    """The weights of rectified flow's loss on v, by the share of noise s.

    As in diffusers' scripts for SD3 (Esser et al. 2024, arXiv:2403.03206): ``sigma_sqrt``:
    ``1 / s²``, here at most ``cap``; ``cosmap``: ``2 / (pi * (1 - 2s + 2s²))``.
    ``sigma_squared``: ``s²``, which compares the clean latents instead of v
    (``--precondition_outputs``).

    Raises:
        UserError: another weighting.
    """
    s = noise_share
    if weighting == "none":
        return torch.ones_like(s)
    if weighting == "sigma_sqrt":
        return s.pow(-2.0).clamp(max=cap)
    if weighting == "sigma_squared":
        return s.square()
    if weighting == "cosmap":
        return 2.0 / (math.pi * (1.0 - 2.0 * s + 2.0 * s.square()))
    raise _unknown(weighting, "rectified-flow", FLOW_WEIGHTINGS)


def _unknown(weighting: str, kind: str, known: tuple[str, ...]) -> UserError:
    return UserError(
        f"weighting {weighting!r} is not known for {kind} bases",
        where="objective.weighting",
        do=f"Known are {', '.join(known)}.",
    )
