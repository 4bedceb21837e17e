"""The arithmetic of merges that leave numbers out: TIES, DARE and magnitude pruning.

TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2023, arXiv:2311.03099. The
definitions are those of peft's ``add_weighted_adapter``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Coin = Callable[[int, Tensor, float], Tensor]
"""``(which adapter, tensor, density) -> mask`` of zeros and ones, for the random methods."""


def combine(
    kind: str,
    tensors: Sequence[Tensor],
    weights: Sequence[float],
    density: float,
    sign: str,
    coin: Coin,
) -> Tensor:
    """One tensor from many of the same shape.

    ``kind``: linear, magnitude_prune, dare_linear, ties, dare_ties. ``density``: the share of
    numbers that stay. ``sign``: how the majority sign is found, by ``total`` or ``frequency``.
    """
    if kind in ("magnitude_prune", "ties"):
        tensors = [largest(t, density) for t in tensors]
    elif kind.startswith("dare"):
        tensors = [thin_out(i, t, density, coin) for i, t in enumerate(tensors)]
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


def thin_out(which: int, tensor: Tensor, density: float, coin: Coin) -> Tensor:
    """Keeps each number with probability ``density`` and scales up so that the mean stays."""
    if density >= 1:
        return tensor
    return tensor * coin(which, tensor, density) / density


def _agreement(stacked: Tensor, sign: str) -> Tensor:
    """Where a number has the sign that the adapters agree on."""
    signs = stacked.sign()
    votes = stacked.sum(dim=0) if sign == "total" else signs.sum(dim=0)
    return signs == torch.where(votes >= 0, 1.0, -1.0)
