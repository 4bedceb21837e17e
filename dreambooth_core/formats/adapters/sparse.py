"""The arithmetic of merges that leave numbers out: TIES, DARE and magnitude pruning.

TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2023, arXiv:2311.03099. All but the dice
is peft's, the definitions are those of its ``add_weighted_adapter``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth_core.randomness import generator


def combine(
    kind: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    sign: str,
    key: Sequence[int | str],
) -> Tensor:
    """One tensor from many of the same shape.

    ``kind``: linear, magnitude_prune, dare_linear, ties, dare_ties. ``density``: the share of
    numbers that stay. ``sign``: how the majority sign is found, by ``total`` or ``frequency``.
    ``key``: what the random methods draw by, and the adapter's place.
    """
    from peft.utils import merge_utils

    if kind in ("magnitude_prune", "ties") and density < 1:
        tensors = [merge_utils.magnitude_based_pruning(t, density) for t in tensors]
    elif kind.startswith("dare") and density < 1:
        # Scaled up so that the mean stays.
        tensors = [t * mask(t, density, *key, i) / density for i, t in enumerate(tensors)]
    stacked = torch.stack(list(tensors))
    factors = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
    weighted = stacked * factors.reshape(-1, *[1] * (stacked.ndim - 1))
    if not kind.endswith("ties"):
        return weighted.sum(dim=0)
    agree = merge_utils.calculate_majority_sign_mask(stacked, sign)
    merged: Tensor = merge_utils.disjoint_merge(weighted, agree)
    return merged


def mask(tensor: Tensor, density: float, *key: int | str) -> Tensor:
    """Ones with a probability, else zeros, for each number; the key alone decides."""
    drawn = torch.rand(tensor.shape, generator=generator("merge", *key))
    return (drawn < density).to(tensor.dtype).to(tensor.device)
