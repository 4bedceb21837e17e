"""The arithmetic of merges that leave numbers out: TIES, DARE and magnitude pruning.

TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2023, arXiv:2311.03099. The
definitions are those of peft's ``add_weighted_adapter``.
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
    if kind in ("magnitude_prune", "ties"):
        tensors = [largest(t, density) for t in tensors]
    elif kind.startswith("dare"):
        tensors = [thin_out(t, density, *key, i) for i, t in enumerate(tensors)]
    stacked = torch.stack(list(tensors))
    factors = torch.tensor(weights, dtype=stacked.dtype, device=stacked.device)
    weighted = stacked * factors.reshape(-1, *[1] * (stacked.ndim - 1))
    if not kind.endswith("ties"):
        return weighted.sum(dim=0)
    agree = _agreement(stacked, sign)
    return (weighted * agree).sum(dim=0) / agree.sum(dim=0).clamp_min(1.0)


def largest(tensor: Tensor, density: float) -> Tensor:
    """Keeps the share ``density`` of numbers that are largest in magnitude."""
    if density >= 1:
        return tensor
    flat = tensor.reshape(-1)
    kept = torch.topk(flat.abs(), int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).reshape(tensor.shape)


def thin_out(tensor: Tensor, density: float, *key: int | str) -> Tensor:
    """Keeps each number with probability ``density`` and scales up so that the mean stays."""
    return tensor if density >= 1 else tensor * mask(tensor, density, *key) / density


def mask(tensor: Tensor, density: float, *key: int | str) -> Tensor:
    """Zeros and ones for each number, which the key alone decides."""
    drawn = torch.rand(tensor.shape, generator=generator("merge", *key))
    return (drawn < density).to(tensor.dtype).to(tensor.device)


def _agreement(stacked: Tensor, sign: str) -> Tensor:
    """Where a number has the sign that the adapters agree on."""
    signs = stacked.sign()
    votes = stacked.sum(dim=0) if sign == "total" else signs.sum(dim=0)
    return signs == torch.where(votes >= 0, 1.0, -1.0)
