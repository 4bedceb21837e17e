"""Changes an adapter's rank, and turns what is no plain LoRA into one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters import names
from dreambooth_core.formats.adapters.lowrank import (
    Keep,
    Reduced,
    as_lora,
    reduce_matrix,
    reduce_product,
)
from dreambooth_core.formats.adapters.metadata import without_network
from dreambooth_core.formats.adapters.model import (
    Adapter,
    DiffWeights,
    LoraWeights,
    Weights,
)
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
        if _stays(weights):
            modules[name] = weights
            continue
        try:
            reduced, shape = _reduce(name, weights, keep, base)
        except UserError as error:
            raise UserError(error.what, where=error.where or name, do=error.do) from error
        shape = names.kernel_shape(name, shape)
        made = as_lora(reduced.up, reduced.down, shape, dtype or weights.dtype)
        bias = weights.bias_delta()
        made.bias = None if bias is None else bias.to(dtype or weights.dtype)
        modules[name] = made
        errors[name] = reduced.error
        lost, total = lost + max(0.0, reduced.lost), total + reduced.total
    ranks = {name: w.rank for name, w in modules.items() if isinstance(w, LoraWeights)}
    smaller = adapter.with_modules(modules)
    smaller.metadata = without_network(adapter.metadata)
    return smaller, Resized(ranks, math.sqrt(lost / total) if total else 0.0, errors)


def _stays(weights: Weights) -> bool:
    if not isinstance(weights, DiffWeights):
        return False
    return weights.weight is None or weights.weight.ndim < 2


def _reduce(
    name: str, weights: Weights, keep: Keep, base: Mapping[str, Tensor] | None
) -> tuple[Reduced, tuple[int, ...]]:
    factors = weights.factors()
    if factors is not None:
        up, down, shape = factors
        if up.shape[1] <= min(up.shape[0], down.shape[1]):
            return reduce_product(up, down, keep), shape
        return reduce_matrix(up @ down, keep), shape
    delta = weights.delta(_base_of(name, weights, base))
    return reduce_matrix(delta.flatten(1), keep), tuple(delta.shape)


def _base_of(name: str, weights: Weights, base: Mapping[str, Tensor] | None) -> Tensor | None:
    weight = base.get(name) if base is not None else None
    if weight is None and weights.needs_base:
        raise UserError(
            f"the change that this {weights.method} makes depends on the base",
            where=name,
            do="Give the base model with --base.",
        )
    return weight
