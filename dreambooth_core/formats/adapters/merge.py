"""Merges any number of adapters: exactly (``cat``), compactly (``svd``), or sparsely.

=================  ==============================================================================
cat                the exact weighted sum; ranks add up (the default)
svd                the weighted sum, cut to the best approximation of a rank
ties_svd, …_svd    TIES, DARE or pruning on the full weight changes, then cut to a rank
linear, ties, …    peft's methods of the same names: they mix the up and down matrices apart,
                   want equal ranks, and are *not* the sum of the adapters
=================  ==============================================================================
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import NoReturn

import torch
from torch import Tensor

from dreambooth_core.errors import UserError, at
from dreambooth_core.families.names import unet
from dreambooth_core.formats.adapters.lowrank import (
    Keep,
    as_lora,
    concatenate,
    energy,
    reduce_matrix,
    reduce_product,
    root,
    squares,
)
from dreambooth_core.formats.adapters.metadata import merged_metadata
from dreambooth_core.formats.adapters.model import (
    COMPONENTS,
    Adapter,
    DiffWeights,
    LoraWeights,
    Weights,
    component_of,
)
from dreambooth_core.formats.adapters.naming import alike, is_text, unfused
from dreambooth_core.formats.adapters.sparse import combine
from dreambooth_core.formats.adapters.weights import Factors, add_bias

log = logging.getLogger(__name__)

SPARSE = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
METHODS = ("cat", "svd", "linear", *SPARSE, *(f"{m}_svd" for m in SPARSE))


@dataclass
class Part:
    """One adapter of a merge, and how much of it."""

    adapter: Adapter
    weight: float = 1.0
    text_weight: float | None = None
    """For the text encoders; by default the same weight."""
    blocks: Mapping[str, float] = field(default_factory=dict)
    """Factors per block, by the beginning of names: ``unet.down_blocks.1``, ``mid_block``."""
    name: str = ""

    def weight_of(self, module: str) -> float:
        """The weight of one module: its model's, times the most specific block's factor."""
        weight = self.weight
        if self.text_weight is not None and is_text(module):
            weight = self.text_weight
        full = {
            name if component_of(name) in COMPONENTS else f"unet.{name}": factor
            for name, factor in self.blocks.items()
        }
        fitting = [name for name in full if f"{module}.".startswith(f"{name}.")]
        return weight * full[max(fitting, key=len)] if fitting else weight


@dataclass
class Plan:
    """How to merge."""

    method: str = "cat"
    rank: int | None = None
    """For svd and the _svd methods; by default the largest rank of a module's parts."""
    density: float = 0.5
    sign: str = "total"
    seed: int = 0
    dtype: torch.dtype | None = None
    """What to store; by default the widest type of the parts."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(
                f"there is no merge method {self.method!r}", do=f"Choose from {', '.join(METHODS)}."
            )
        if not 0 < self.density <= 1:
            raise UserError(f"density is between 0 and 1, not {self.density:g}")
        if self.sign not in ("total", "frequency"):
            raise UserError(f"sign is total or frequency, not {self.sign!r}")
        if self.rank is not None and self.rank < 1:
            raise UserError(f"a rank is at least 1, not {self.rank}")


@dataclass(frozen=True)
class Report:
    """What a merge did."""

    method: str
    modules: int
    ranks: tuple[int, ...]
    """The ranks that occur, rising."""
    error: float
    """‖result - Σ wᵢΔWᵢ‖ / ‖Σ wᵢΔWᵢ‖ over all modules: what svd cut off, rounding to 16 bit, and
    for the other methods how far they are from a sum; 0 for cat in fp32."""
    truncated: float
    """What cutting to a rank lost, relative to the method's own full result; 0 without a cut."""
    warnings: tuple[str, ...] = ()


Base = Mapping[str, Tensor]
"""Base weights by module name, for adapters whose change depends on them (DoRA, OFT)."""


def merge(
    parts: Sequence[Part], plan: Plan | None = None, base: Base | None = None
) -> tuple[Adapter, Report]:
    """Merges adapters; modules that only some of them change are merged from those.

    Raises:
        UserError: nothing to merge, families differ, ranks differ where the method wants them
            equal, or a base is needed.
    """
    plan = plan or Plan()
    if not parts:
        raise UserError("there is nothing to merge")
    family = _family(parts)
    adapters = [part.adapter for part in parts]
    matched = alike(adapters, family) if base is None else list(map(unfused, adapters))
    parts = [replace(part, adapter=each) for part, each in zip(parts, matched, strict=True)]
    dtype = plan.dtype or reduce(torch.promote_types, (each.dtype for each in matched))
    modules: dict[str, Weights] = {}
    tally = _Tally()
    for name in dict.fromkeys(n for part in parts for n in part.adapter.modules):
        terms = terms_of(name, parts)
        with at(name):
            made = _module(name, terms, plan, base, tally)
            if isinstance(made, LoraWeights):
                made.bias = _bias(terms)
            modules[name] = made.to(dtype)
        if plan.method != "cat" or dtype.itemsize < 4:  # cat in fp32 is the sum by construction
            tally.compare(name, modules[name], terms, base)
    warnings: tuple[str, ...] = ()
    if plan.method in ("linear", *SPARSE) and len(parts) > 1:
        warnings = (
            f"{plan.method} mixes the up and down matrices apart, as peft does: the result is not "
            "the sum of the adapters. Use cat for the exact sum, or svd for a compact one",
        )
        log.warning(warnings[0])
    error, truncated = root(tally.wrong, tally.right), root(tally.cut, tally.whole)
    if not math.isfinite(error) or not math.isfinite(truncated):
        raise UserError(
            "the merged adapter has NaN or infinity: its numbers are too large",
            do="Use smaller weights.",
        )
    ranks = tuple(sorted({w.rank for w in modules.values() if w.rank}))
    report = Report(plan.method, len(modules), ranks, error, truncated, warnings)
    extras = {k: t for part in reversed(parts) for k, t in part.adapter.extras.items()}
    layers = max((p.adapter.layers_per_block for p in parts), key=lambda n: n != 2)
    metadata = merged_metadata([(p.name, p.weight, p.adapter.metadata) for p in parts], plan.method)
    return Adapter(modules, metadata, family, layers, extras), report


Term = tuple[Weights, float]


def terms_of(name: str, parts: Sequence[Part]) -> list[Term]:
    """The changes of one module, and how much of each."""
    return [
        (p.adapter.modules[name], p.weight_of(name)) for p in parts if name in p.adapter.modules
    ]


@dataclass
class _Tally:
    """Sums of squares over modules."""

    wrong: float = 0.0
    right: float = 0.0
    cut: float = 0.0
    whole: float = 0.0

    def compare(self, name: str, result: Weights, terms: list[Term], base: Base | None) -> None:
        """Adds the distance of a module's result from the true weighted sum."""
        joint, found = _joint(terms), result.factors()
        if joint is not None and found is not None:
            up, down, _ = joint
            self.right += energy(up, down)
            self.wrong += energy(*concatenate([(up, down), (-found[0], found[1])]))
        elif not (isinstance(result, DiffWeights) and result.weight is None):
            true = _dense(name, terms, base)
            self.right += squares(true)
            self.wrong += squares(result.delta(true) - true)


def _module(name: str, terms: list[Term], plan: Plan, base: Base | None, tally: _Tally) -> Weights:
    if plan.method in ("linear", *SPARSE):
        return _apart(name, terms, plan)
    if any(isinstance(w, DiffWeights) and w.is_small for w, _ in terms):
        return _full(name, terms, base)
    joint = _joint(terms)
    keep = Keep(plan.rank or max(w.rank for w, _ in terms) or 16)
    if plan.method == "cat":
        if joint is None:
            return _full(name, terms, base)
        up, down, shape = joint
        smaller = min(up.shape[0], down.shape[1])
        if up.shape[1] > smaller:
            # More columns than the weight has dimensions: the same sum fits a smaller rank.
            reduced = reduce_product(up, down, Keep(smaller))
            up, down = reduced.up, reduced.down
        return as_lora(up, down, unet.kernel_shape(name, shape))
    if plan.method == "svd" and joint is not None:
        reduced, shape = reduce_product(joint[0], joint[1], keep), joint[2]
    else:
        dense = _sparse_sum(name, terms, plan, base)
        reduced, shape = reduce_matrix(dense.flatten(1), keep, plan.seed), tuple(dense.shape)
    tally.cut += reduced.lost
    tally.whole += reduced.total
    return as_lora(reduced.up, reduced.down, unet.kernel_shape(name, shape))


def _joint(terms: list[Term]) -> Factors | None:
    """The factors of the sum, or ``None`` if a term has no exact ones."""
    pairs = []
    for weights, strength in terms:
        found = weights.factors()
        if found is None:
            return None
        pairs.append((found[0] * strength, *found[1:]))
    shapes = {(u.shape[0], d.shape[1]) for u, d, _ in pairs}
    kernels = {shape for _, _, shape in pairs if len(shape) > 2}
    if len(shapes) > 1 or len(kernels) > 1:
        _refuse_sizes([shape for _, _, shape in pairs])
    pairs.sort(key=lambda pair: -len(pair[2]))
    return *concatenate([(up, down) for up, down, _ in pairs]), pairs[0][2]


def _dense(name: str, terms: list[Term], base: Base | None) -> Tensor:
    """Σ wᵢ ΔWᵢ in fp32."""
    deltas = (_delta(name, weights, base) * strength for weights, strength in terms)
    return reduce(lambda total, delta: total + _shaped(delta, total), deltas)


def _delta(name: str, weights: Weights, base: Base | None) -> Tensor:
    weight = base_for(name, weights, base)
    delta = weights.delta(weight)
    return delta if weight is not None else delta.reshape(unet.kernel_shape(name, delta.shape))


def base_for(name: str, weights: Weights, base: Base | None) -> Tensor | None:
    """The weight that a change is for, if it is known. Raises ``UserError`` where it must be."""
    weight = base.get(name) if base is not None else None
    if weight is None and weights.needs_base:
        raise UserError(
            f"the change that a {weights.method} with these settings makes depends on the base",
            do="Give the base model with --base.",
        )
    return weight


def _full(name: str, terms: list[Term], base: Base | None) -> DiffWeights:
    """The sum stored in full, biases included."""
    weighty = [(w, s) for w, s in terms if not (isinstance(w, DiffWeights) and w.weight is None)]
    norm = any(isinstance(w, DiffWeights) and w.norm for w, _ in terms)
    weight = _dense(name, weighty, base) if weighty else None
    return DiffWeights(weight, _bias(terms), norm=norm)


def _bias(terms: list[Term]) -> Tensor | None:
    """Σ wᵢ Δbᵢ, where there is any."""
    total: Tensor | None = None
    for weights, strength in terms:
        shift = weights.bias_delta()
        if shift is not None:
            total = add_bias(torch.zeros_like(shift) if total is None else total, shift, strength)
    return total


def _shaped(delta: Tensor, other: Tensor) -> Tensor:
    """One change in the shape of another of the same module; a file may keep it flat."""
    if delta.numel() != other.numel() or delta.shape[0] != other.shape[0]:
        _refuse_sizes([tuple(other.shape), tuple(delta.shape)])
    return delta.reshape(other.shape)


def _refuse_sizes(shapes: Sequence[tuple[int, ...]]) -> NoReturn:
    told = ", ".join(str(list(shape)) for shape in dict.fromkeys(shapes))
    raise UserError(
        f"the adapters change weights of different sizes: {told}", do="Merge adapters of one base."
    )


def _sparse_sum(name: str, terms: list[Term], plan: Plan, base: Base | None) -> Tensor:
    """The full weight changes combined by the method before the cut."""
    if plan.method == "svd":
        return _dense(name, terms, base)
    deltas = [_delta(name, weights, base) for weights, _ in terms]
    deltas = [_shaped(delta, deltas[0]) for delta in deltas]
    return _combined(plan, name, "full", deltas, [strength for _, strength in terms])


def _apart(name: str, terms: list[Term], plan: Plan) -> LoraWeights:
    """peft's methods without a decomposition: up and down matrices combined each for itself."""
    loras = [
        (w, s)
        for w, s in terms
        if isinstance(w, LoraWeights) and w.dora_scale is None and w.mid is None
    ]
    ranks = {w.rank for w, _ in loras}
    if len(loras) < len(terms) or len(ranks) != 1:
        found = "other methods than LoRA" if len(loras) < len(terms) else f"ranks {sorted(ranks)}"
        raise UserError(
            f"{plan.method} needs plain LoRA of one rank, and here are {found}",
            do=f"Use cat, svd{'' if plan.method == 'linear' else f' or {plan.method}_svd'}.",
        )
    for kind in ("down", "up"):
        shapes = [tuple(getattr(w, kind).shape) for w, _ in loras]
        if len(set(shapes)) > 1:
            _refuse_sizes(shapes)
    scaled = [strength * w.alpha / w.rank for w, strength in loras]
    roots = [math.sqrt(abs(s)) for s in scaled]
    signed = [math.copysign(half, s) for half, s in zip(roots, scaled, strict=True)]
    down, up = (
        _combined(plan, name, kind, [getattr(w, kind).float() for w, _ in loras], strengths)
        for kind, strengths in (("down", signed), ("up", roots))
    )
    return LoraWeights(down, up, float(ranks.pop()))


def _combined(
    plan: Plan, name: str, what: str, tensors: Sequence[Tensor], strengths: Sequence[float]
) -> Tensor:
    """What the method makes of tensors of one shape. Random masks depend on the seed, the module
    and the adapter's place, nothing else."""
    kind, key = plan.method.removesuffix("_svd"), (plan.seed, name, what)
    return combine(kind, tensors, strengths, plan.density, plan.sign, key)


def _family(parts: Sequence[Part]) -> str | None:
    known = {p.adapter.family for p in parts if p.adapter.family}
    strange = any(
        not p.adapter.family and any(n.startswith("other.") for n in p.adapter.modules)
        for p in parts
    )
    if len(known) > 1 or (known and strange):
        told = sorted(known) + (["an unknown family"] if strange else [])
        raise UserError(
            f"these adapters are for different kinds of base: {', '.join(told)}",
            do="Merge adapters of one family.",
        )
    return next(iter(known), None)
