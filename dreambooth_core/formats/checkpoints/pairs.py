"""Pairs of names: where a weight lies in the single file and where in diffusers.

A network's full list of pairs follows from its configuration. Translating is then the same
for every network, both ways, and a weight that has no pair, or a pair that has no weight, is
noticed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.formats.storage import Lazy, TensorLike


@dataclass(frozen=True)
class Pair:
    """One weight of the single file and the weight or weights of diffusers that it is."""

    single: str
    diffusers: tuple[str, ...]
    """One name; three for a fused query, key and value projection, split along rows."""
    kind: str = "same"
    """``same``; ``conv`` (a 1×1 convolution here, a linear layer there); ``transposed``;
    ``fused``."""


def module(single: str, diffusers: str, *, kind: str = "same", bias: bool = True) -> list[Pair]:
    """The pairs of a layer with a weight and, most often, a bias."""
    pairs = [Pair(f"{single}.weight", (f"{diffusers}.weight",), kind)]
    if bias:
        pairs.append(Pair(f"{single}.bias", (f"{diffusers}.bias",)))
    return pairs


def modules(single: str, diffusers: str, names: Mapping[str, str]) -> list[Pair]:
    """The pairs of several layers of a block, by their names in the single file."""
    return [
        pair
        for own, theirs in names.items()
        for pair in module(f"{single}.{own}", f"{diffusers}.{theirs}")
    ]


def to_diffusers(
    pairs: Iterable[Pair], tensors: Mapping[str, torch.Tensor], where: str | Path
) -> dict[str, torch.Tensor]:
    """Weights in diffusers' names and shapes, as views: nothing is copied.

    Raises:
        UserError: a weight is missing.
    """
    pairs = list(pairs)
    _refuse_missing([p.single for p in pairs if p.single not in tensors], where)
    return dict(item for pair in pairs for item in _split(pair, tensors[pair.single], where))


def to_single(
    pairs: Iterable[Pair], tensors: Mapping[str, torch.Tensor], where: str | Path
) -> dict[str, TensorLike]:
    """Weights in the single file's names and shapes; fused ones are made when they are written.

    Raises:
        UserError: a weight is missing.
    """
    pairs = list(pairs)
    names = [name for pair in pairs for name in pair.diffusers]
    _refuse_missing([name for name in names if name not in tensors], where)
    return {pair.single: _join(pair, [tensors[n] for n in pair.diffusers]) for pair in pairs}


def _split(
    pair: Pair, tensor: torch.Tensor, where: str | Path
) -> Iterator[tuple[str, torch.Tensor]]:
    shape = tuple(tensor.shape)
    if pair.kind == "fused":
        if not shape or shape[0] % 3:
            raise _misshapen(pair, shape, "does not divide in three", where)
        yield from zip(pair.diffusers, tensor.chunk(3, dim=0), strict=True)
        return
    if pair.kind == "conv" and tensor.ndim > 2:
        if shape[2:] != (1, 1):
            raise _misshapen(pair, shape, "is not a 1x1 convolution", where)
        tensor = tensor.reshape(tensor.shape[:2])
    elif pair.kind == "transposed":
        if tensor.ndim != 2:
            raise _misshapen(pair, shape, "is not a matrix", where)
        tensor = tensor.T
    yield pair.diffusers[0], tensor


def _join(pair: Pair, tensors: list[torch.Tensor]) -> TensorLike:
    first = tensors[0]
    if pair.kind == "fused":
        dtype = first.dtype
        for tensor in tensors:
            dtype = torch.promote_types(dtype, tensor.dtype)
        shape = (sum(t.shape[0] for t in tensors), *first.shape[1:])
        if all(t.device.type == "meta" for t in tensors):
            return torch.cat(tensors)
        return Lazy(shape, dtype, partial(torch.cat, tensors))
    if pair.kind == "conv":
        return first.reshape(*first.shape[:2], 1, 1)
    return first.T if pair.kind == "transposed" else first


def _misshapen(pair: Pair, shape: tuple[int, ...], what: str, where: str | Path) -> UserError:
    return UserError(
        f"the weight {pair.single} has the shape {list(shape)}: it {what}", where=where
    )


def _refuse_missing(missing: list[str], where: str | Path) -> None:
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"the weight {missing[0]}{more} is missing", where=where)
