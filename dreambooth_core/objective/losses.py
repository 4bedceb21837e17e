"""Distances between prediction and target, elementwise, and their mean per sample."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.objective.schedule import per_sample


def elementwise(kind: str, prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """The loss of each element, fp32. ``prediction`` and ``target`` ``[B, ...]``.

    ``threshold`` ``[B]`` is used by ``huber``, the pseudo-Huber loss
    ``2c * (sqrt(d² + c²) - c)`` of Khrapov et al. 2024 (arXiv:2403.16728), which is d² for
    small and 2c|d| for large errors, and by ``smooth_l1``, ``d² / 2c`` below c and
    ``|d| - c/2`` above.
    """
    difference = prediction.float() - target.float()
    if kind == "l2":
        return difference.square()
    if kind == "l1":
        return difference.abs()
    c = per_sample(threshold, difference)
    if kind == "huber":
        # The same as in the paper, without the difference of two nearly equal numbers.
        square = difference.square()
        return 2.0 * c * square / ((square + c.square()).sqrt() + c)
    if kind == "smooth_l1":
        size = difference.abs()
        return torch.where(size < c, difference.square() / (2.0 * c), size - c / 2.0)
    raise UserError(f"loss {kind!r} is not known", where="objective.loss")


def huber_threshold(
    schedule: str, c: float, timesteps: Tensor, alphas_bar: Tensor, steps: int
) -> Tensor:
    """The threshold of each sample, ``[B]``, fp32. Khrapov et al. 2024.

    ``exponential``: ``c ** (t / steps)``; ``snr``: ``(1 - c) / (1 + sigma)² + c`` with
    ``sigma² = 1 / SNR``. Both are 1 without noise and tend to ``c``.
    """
    if schedule == "constant":
        return torch.full_like(alphas_bar, c, dtype=torch.float32)
    if schedule == "exponential":
        return torch.exp(timesteps.float() * (math.log(c) / steps))
    if schedule == "snr":
        sigma = ((1.0 - alphas_bar.float()) / alphas_bar.float()).sqrt()
        return (1.0 - c) / (1.0 + sigma).square() + c
    raise UserError(f"Huber schedule {schedule!r} is not known", where="objective.huber_schedule")


def mean_per_sample(losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over all but the first dimension, ``[B, C, H, W]`` to ``[B]``.

    ``mask`` ``[B, 1, h, w]`` in [0, 1], of the picture's or the latents' size, is averaged down
    to the latents' size and weights the mean, so that a small subject counts as much as a large
    one. A sample whose weights are all 0 has loss 0.
    """
    if mask is None:
        return losses.flatten(1).mean(dim=1)
    weights = mask.to(device=losses.device, dtype=losses.dtype)
    if weights.shape[-2:] != losses.shape[-2:]:
        size = (int(losses.shape[-2]), int(losses.shape[-1]))
        weights = F.adaptive_avg_pool2d(weights, size)
    weights = weights.expand_as(losses).flatten(1)
    total = weights.sum(dim=1)
    weighted = (losses.flatten(1) * weights).sum(dim=1)
    return torch.where(total > 0, weighted / total.clamp(min=1e-12), torch.zeros_like(total))
