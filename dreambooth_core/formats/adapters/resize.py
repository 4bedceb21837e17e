"""Changes an adapter's rank, and turns what is no plain LoRA into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreambooth_core.errors import at
from dreambooth_core.families.names import unet
from dreambooth_core.formats.adapters.lowrank import (
    Keep,
    Reduced,
    as_lora,
    reduce_matrix,
    reduce_product,
    root,
)
from dreambooth_core.formats.adapters.merge import base_for
from dreambooth_core.formats.adapters.metadata import without_network
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, LoraWeights, Weights
from dreambooth_core.formats.adapters.naming import unfused


@dataclass(frozen=True)
class Resized:
    """What a resize did."""

    ranks: dict[str, int]
    """The new rank of each module."""
    error: float
    """Relative error of the whole change, Frobenius norm."""
    errors: dict[str, float] = field(default_factory=dict)
    """The same per module."""


def resize(
    adapter: Adapter,
    keep: Keep,
    *,
    base: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Adapter, Resized]:
    """The best adapter of a smaller rank: plain LoRA, alpha equal to rank.

    LoHa, LoKr and changes stored in full become LoRA too; so do DoRA and OFT where ``base``
    (weights by module name) is given. Biases and norms stay as they are.

    Raises:
        UserError: a module's change depends on the base, and there is none.
    """
    adapter = adapter if base is None else unfused(adapter)
    modules: dict[str, Weights] = {}
    errors: dict[str, float] = {}
    lost = total = 0.0
    for name, weights in adapter.modules.items():
        if isinstance(weights, DiffWeights) and weights.is_small:
            modules[name] = weights
            continue
        with at(name):
            reduced, shape = _reduce(name, weights, keep, base)
        kind = dtype or weights.dtype
        made = as_lora(reduced.up, reduced.down, unet.kernel_shape(name, shape), kind)
        bias = weights.bias_delta()
        made.bias = None if bias is None else bias.to(kind)
        modules[name] = made
        errors[name] = reduced.error
        lost, total = lost + max(0.0, reduced.lost), total + reduced.total
    ranks = {name: w.rank for name, w in modules.items() if isinstance(w, LoraWeights)}
    smaller = adapter.with_modules(modules)
    smaller.metadata = without_network(adapter.metadata)
    return smaller, Resized(ranks, root(lost, total), errors)


def _reduce(
    name: str, weights: Weights, keep: Keep, base: Mapping[str, Tensor] | None
) -> tuple[Reduced, tuple[int, ...]]:
    factors = weights.factors()
    if factors is not None:
        up, down, shape = factors
        if up.shape[1] <= min(up.shape[0], down.shape[1]):
            return reduce_product(up, down, keep), shape
        return reduce_matrix(up @ down, keep), shape
    delta = weights.delta(base_for(name, weights, base))
    return reduce_matrix(delta.flatten(1), keep), tuple(delta.shape)
