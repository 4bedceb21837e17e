"""The two-part loss of DreamBooth: the subject, and its class so that it survives.

Ruiz et al. 2022, "DreamBooth" (arXiv:2208.12242), equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Parts:
    """What each kind of image contributed. Scalars without gradient, on the losses' device."""

    instance: Tensor
    """Mean loss of the instance images; 0 where there were none."""
    prior: Tensor
    """Mean loss of the class images, before ``prior_weight``; 0 where there were none."""
    prior_share: Tensor
    """The class images' share of the total loss, 0 to 1."""


def combine(
    losses: Tensor,
    is_class: Tensor,
    prior_weight: float,
    counts: tuple[int, int] | None = None,
) -> tuple[Tensor, Parts]:
    """Mean over instance pictures plus ``prior_weight`` times the mean over class pictures.

    ``losses`` ``[B]``, ``is_class`` ``[B]`` bool. Each kind has a mean of its own, so the order
    of the batch and the share of each kind do not matter.

    ``counts``, the number of instance and class pictures of the *whole* batch, is for a part of
    it (one accumulation step, one process): the totals of all parts then add up to the total of
    the whole batch, however the kinds are spread.
    """
    of_class = is_class.to(device=losses.device, dtype=losses.dtype)
    of_instance = 1.0 - of_class
    instances: Tensor | float
    classes: Tensor | float
    if counts is None:
        instances, classes = of_instance.sum().clamp(min=1.0), of_class.sum().clamp(min=1.0)
    else:
        instances, classes = max(counts[0], 1.0), max(counts[1], 1.0)
    instance = (losses * of_instance).sum() / instances
    prior = (losses * of_class).sum() / classes
    total = instance + prior_weight * prior
    with torch.no_grad():
        share = prior_weight * prior / total.clamp(min=1e-12)
    return total, Parts(instance.detach(), prior.detach(), share.detach())
