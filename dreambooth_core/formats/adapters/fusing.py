"""Layers that one program keeps apart and another as one: both ways, exactly.

Rows of a change belong to outputs, so a fused layer's change is that of its parts, one below the
other. Cut apart, the parts share the thin matrices of the inputs; put together, each part keeps
its own and ranks add up. What a part does not use is left out again, so the way back is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import Unsupported
from dreambooth_core.formats.adapters.lowrank import as_lora
from dreambooth_core.formats.adapters.relatives import LohaWeights, LokrWeights, OftWeights
from dreambooth_core.formats.adapters.weights import DiffWeights, LoraWeights, Weights


def outputs_of(weights: Weights) -> int | None:
    """Rows of the change; ``None`` where only the base tells (OFT of the inputs)."""
    if isinstance(weights, LokrWeights):
        return weights.first().shape[0] * weights.second().shape[0]
    if isinstance(weights, OftWeights):
        alone = weights.blocks.ndim != 3 or weights.blocks.shape[0] == 1
        return None if weights.side == "in" or alone else len(weights.blocks) * weights.rank
    return next((tensor.shape[axis] for _, tensor, axis in _by_rows(weights)), None)


def is_zero(weights: Weights) -> bool:
    """Whether it is a LoRA that changes nothing: the part of a fused layer that was left alone."""
    if not isinstance(weights, LoraWeights) or weights.dora_scale is not None:
        return False
    return weights.bias is None and not bool(weights.up.any())


def split(weights: Weights, sizes: Sequence[int]) -> list[Weights]:
    """The parts of a fused layer's change; ``sizes``: rows of each.

    Raises:
        Unsupported: the method mixes the rows of several parts.
    """
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [rows(weights, [slice(end - size, end)]) for end, size in zip(ends, sizes, strict=True)]


def swap_halves(weights: Weights) -> Weights:
    """The change with its lower half on top (scale and shift of a modulation).

    Raises:
        Unsupported: the method mixes the rows of both.
    """
    outputs = outputs_of(weights)
    if outputs is None or outputs % 2:
        raise Unsupported(f"a {weights.method} of this shape cannot be turned round")
    return rows(weights, [slice(outputs // 2, outputs), slice(0, outputs // 2)])


def rows(weights: Weights, wanted: Sequence[slice]) -> Weights:
    """The same change of some of the outputs, in the order wanted. Raises ``Unsupported``."""
    if isinstance(weights, OftWeights):
        return _oft_rows(weights, wanted)
    if isinstance(weights, LokrWeights):
        return _lokr_rows(weights, wanted)
    made = weights.to()
    made.dora_scale = _magnitudes(weights, wanted)
    for name, tensor, axis in _by_rows(weights):
        setattr(made, name, _take(tensor, wanted, axis).contiguous())
    if isinstance(made, LoraWeights) and made.up.ndim == 2 and made.mid is None:
        used = made.up.any(0)
        if bool(used.any()) and not bool(used.all()):
            up, down, rank = made.up[:, used].contiguous(), made.down[used], made.rank
            return replace(made, up=up, down=down, alpha=made.alpha * (len(down) / rank))
    return made


def _by_rows(weights: Weights) -> Iterator[tuple[str, Tensor, int]]:
    """The tensors that have the outputs along an axis."""
    names = {LoraWeights: ("up", "bias"), LohaWeights: ("w1_a", "w2_a")}
    for name in names.get(type(weights), ("weight", "bias")):
        if (tensor := getattr(weights, name)) is not None:
            yield name, tensor, 0 if getattr(weights, "t1", None) is None else 1


def join(parts: Sequence[Weights | None], sizes: Sequence[int]) -> Weights:
    """One change of a fused layer from those of its parts; ``None`` for a part that is unchanged.

    Raises:
        Unsupported: methods are mixed, or the magnitudes (DoRA) or rotations (OFT) of a part
            are missing, which only the base tells.
    """
    present = [part for part in parts if part is not None]
    kinds = {type(part) for part in present}
    if kinds == {DiffWeights}:
        return _join_full(parts, sizes)
    if kinds == {OftWeights}:
        return _join_oft(parts)
    if kinds <= {LoraWeights, LohaWeights, LokrWeights}:
        return _join_products(parts, sizes)
    names = ", ".join(sorted({part.method for part in present}))
    raise Unsupported(
        f"layers that this naming keeps as one are changed by different methods ({names})",
        do="Make it plain LoRA first: dreambooth resize.",
    )


def _join_products(parts: Sequence[Weights | None], sizes: Sequence[int]) -> LoraWeights:
    """Block by block: the ups stand on a diagonal, the downs below one another."""
    scales = [None if part is None else part.dora_scale for part in parts]
    dora = _join_magnitudes(scales) if any(scale is not None for scale in scales) else None
    found = [None if part is None else _product(part) for part in parts]
    downs = [pair[1] for pair in found if pair is not None]
    shared = all(torch.equal(down, downs[0]) for down in downs)
    width = downs[0].shape[0] if shared else 0
    ups = [
        torch.zeros(size, width) if pair is None else pair[0]
        for pair, size in zip(found, sizes, strict=True)
    ]
    up = torch.cat(ups) if shared else torch.block_diag(*ups)
    dtype = next(part.dtype for part in parts if part is not None)
    down = downs[0] if shared else torch.cat(downs)
    made = as_lora(up, down, (up.shape[0], down.shape[1]), dtype)
    made.dora_scale = dora
    made.bias = _join_biases(parts, sizes)
    return made


def _product(part: Weights) -> tuple[Tensor, Tensor]:
    """``(up, down)`` with the scale inside; a scale that is a power of two costs no rounding."""
    factors = part.low_rank() if isinstance(part, LoraWeights) else part.factors()
    if factors is None:
        raise Unsupported(
            f"a {part.method} of this form is not a product of thin matrices",
            do="Make it plain LoRA first: dreambooth resize with --base.",
        )
    up, down, shape = factors
    if len(shape) != 2:
        raise Unsupported("convolutions are never kept as one")
    return up, down


def _join_magnitudes(scales: Sequence[Tensor | None]) -> Tensor:
    if any(scale is None or scale.shape[0] != scale.numel() for scale in scales):
        raise Unsupported(
            "layers that this naming keeps as one are only partly DoRA, and the magnitudes of "
            "the others are the base's",
            do="Write the diffusers layout, or make it plain LoRA: dreambooth resize with --base.",
        )
    return torch.cat([scale for scale in scales if scale is not None])


def _join_full(parts: Sequence[Weights | None], sizes: Sequence[int]) -> DiffWeights:
    changes = [part.weight if isinstance(part, DiffWeights) else None for part in parts]
    for weight, size in zip(changes, sizes, strict=True):
        if weight is not None and weight.shape[0] != size:
            raise Unsupported(f"a part has {weight.shape[0]} rows, {size} are wanted")
    return DiffWeights(_stacked(changes, sizes), _join_biases(parts, sizes))


def _join_biases(parts: Sequence[Weights | None], sizes: Sequence[int]) -> Tensor | None:
    return _stacked([None if part is None else part.bias_delta() for part in parts], sizes)


def _stacked(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """One below the other, zeros where one is missing; ``None`` where all are."""
    present = next((each for each in tensors if each is not None), None)
    if present is None:
        return None
    blank = [present.new_zeros(size, *present.shape[1:]) for size in sizes]
    return torch.cat([b if t is None else t for t, b in zip(tensors, blank, strict=True)])


def _join_oft(parts: Sequence[Weights | None]) -> OftWeights:
    ofts = [part for part in parts if isinstance(part, OftWeights)]
    first = ofts[0]
    same = all(
        (oft.rank, oft.side, oft.terms) == (first.rank, first.side, first.terms) for oft in ofts
    )
    whole = len(ofts) == len(parts) and same and all(oft.blocks.ndim == 3 for oft in ofts)
    if whole and first.side == "in":
        if all(torch.equal(oft.blocks, first.blocks) for oft in ofts):
            return first
    elif whole and not any(oft.alpha or outputs_of(oft) is None for oft in ofts):
        scales = [oft.rescale for oft in ofts]
        if all(scale is None for scale in scales):
            return replace(first, blocks=torch.cat([oft.blocks for oft in ofts]))
    raise Unsupported(
        "rotations (OFT) of separate layers are not a rotation of the fused one",
        do="Write the diffusers layout, or make it plain LoRA: dreambooth resize with --base.",
    )


def _lokr_rows(weights: LokrWeights, wanted: Sequence[slice]) -> Weights:
    """Rows of the left factor, where the parts end between two of them; else as plain LoRA."""
    step = int(weights.second().shape[0])
    if _fits(wanted, step):
        left = "w1" if weights.w1 is not None else "w1_a"
        taken: dict[str, Any] = {left: _take(getattr(weights, left), _coarse(wanted, step))}
        return replace(weights, **taken, dora_scale=_magnitudes(weights, wanted))
    factors = replace(weights, dora_scale=None).factors()
    if factors is None:
        raise Unsupported(
            "a LoKr of a convolution cannot be cut between the rows of its factors",
            do="Make it plain LoRA first: dreambooth resize.",
        )
    up, down, shape = factors
    made = as_lora(_take(up, wanted), down, shape, weights.dtype)
    made.dora_scale = _magnitudes(weights, wanted)
    return made


def _oft_rows(weights: OftWeights, wanted: Sequence[slice]) -> OftWeights:
    if weights.side == "in":
        return weights  # the inputs are the same for every part
    size = weights.rank
    apart = _fits(wanted, size)
    if weights.blocks.ndim == 3 and weights.blocks.shape[0] > 1 and apart and not weights.alpha:
        blocks = _take(weights.blocks, _coarse(wanted, size))
        rescale = None if weights.rescale is None else _take(weights.rescale, wanted)
        return replace(weights, blocks=blocks, rescale=rescale)
    raise Unsupported(
        "a rotation (OFT) of a fused layer mixes the outputs of its parts",
        do="Keep the layout, or make it plain LoRA: dreambooth resize with --base.",
    )


def _fits(wanted: Sequence[slice], step: int) -> bool:
    return all(part.start % step == 0 and part.stop % step == 0 for part in wanted)


def _coarse(wanted: Sequence[slice], step: int) -> list[slice]:
    return [slice(part.start // step, part.stop // step) for part in wanted]


def _magnitudes(weights: Weights, wanted: Sequence[slice]) -> Tensor | None:
    scale = weights.dora_scale
    if scale is None:
        return None
    if scale.shape[0] != outputs_of(weights):
        raise Unsupported(
            "this DoRA keeps a magnitude per input, which the parts of a layer share",
            do="Make it plain LoRA first: dreambooth resize with --base.",
        )
    return _take(scale, wanted)


def _take(tensor: Tensor, wanted: Sequence[slice], axis: int = 0) -> Tensor:
    pieces = [tensor[part] if axis == 0 else tensor[:, part] for part in wanted]
    return pieces[0].clone() if len(pieces) == 1 else torch.cat(pieces, dim=axis)
