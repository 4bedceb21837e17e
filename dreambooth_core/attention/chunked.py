"""Exact attention in little memory, in plain torch, for any device.

Queries and keys are taken in chunks with an online softmax, and the backward pass computes the
scores again instead of keeping them, so no matrix of the size queries × keys ever exists.
Rabe & Staats 2021 (arXiv:2112.05682); Dao et al. 2022, "FlashAttention" (arXiv:2205.14135),
for the backward pass. Slower than torch's fused kernels: it is for where those do not run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

CHUNK = 1024
"""Queries and keys that are taken at once."""
SCORES = CHUNK * CHUNK
"""At most so many scores exist at once: more heads are taken together where there is room."""


def chunked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """``softmax(query @ key.T * scale + mask) @ value``, with gradients for the three.

    Args:
        query: ``[B, H, N, D]``, floating.
        key: ``[B, H, M, D]``.
        value: ``[B, H, M, E]``.
        mask: broadcastable to ``[B, H, N, M]``; bool (true: take part) or added to the scores.
        scale: ``1 / sqrt(D)`` if None.
        chunk: queries and keys taken at once.

    Returns:
        ``[B, H, N, E]`` in ``query``'s dtype. A query that may see no key gets zeros.

    Raises:
        ValueError: the mask needs a gradient, which this kernel does not compute.
    """
    if mask is not None:
        if mask.requires_grad:
            raise ValueError("chunked attention has no gradient for its mask")
        shape = (*query.shape[:3], key.shape[2])
        mask = mask.expand(shape)
    if scale is None:
        scale = query.shape[-1] ** -0.5
    key, value = key.to(query.dtype), value.to(query.dtype)
    result: Tensor = _Chunked.apply(query, key, value, mask, float(scale), chunk)
    return result


@dataclass(frozen=True)
class _Heads:
    """Some heads of one sample: ``[h, N, D]`` each, and their mask ``[h, N, M]``."""

    at: tuple[int, slice]
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    chunk: int
    """Queries and keys taken at once."""

    def scores(self, queries: slice, keys: slice) -> Tensor:
        """Masked scores of a chunk, ``[h, n, m]``, fp32 or double."""
        product = torch.matmul(self.query[:, queries], self.key[:, keys].transpose(1, 2))
        scores = product.to(_accumulator(product)).mul_(self.scale)
        if self.mask is None:
            return scores
        chunk = self.mask[:, queries, keys]
        if chunk.dtype == torch.bool:
            return scores.masked_fill_(~chunk, -torch.inf)
        return scores.add_(chunk)


class _Chunked(Function):
    """The forward pass keeps its inputs, its output and one number for each query."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        chunk: int,
    ) -> Tensor:
        output = query.new_empty(*query.shape[:3], value.shape[-1])
        log_sums = query.new_empty(query.shape[:3], dtype=_accumulator(query))
        with without_autocast(query.device):
            for heads in _groups(query, key, value, mask, scale, chunk):
                for queries in _slices(query.shape[2], chunk):
                    out, log_sum = _attend(heads, queries)
                    output[heads.at][:, queries] = out
                    log_sums[heads.at][:, queries] = log_sum
        ctx.save_for_backward(query, key, value, mask, output, log_sums)
        ctx.scale, ctx.chunk = scale, chunk
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, output, log_sums = ctx.saved_tensors
        gradient = gradients[0].to(query.dtype)
        wide = _accumulator(query)
        results = [torch.empty_like(t) for t in (query, key, value)]
        with without_autocast(query.device):
            # Each probability's gradient is taken relative to their mean under the softmax.
            means = (gradient.to(wide) * output.to(wide)).sum(dim=-1)
            for heads in _groups(query, key, value, mask, ctx.scale, ctx.chunk):
                given = (each[heads.at] for each in (gradient, log_sums, means))
                parts = _gradients(heads, *given)
                for result, part in zip(results, parts, strict=True):
                    result[heads.at] = part
        return (*results, None, None, None)


def _attend(heads: _Heads, queries: slice) -> tuple[Tensor, Tensor]:
    """Output ``[h, n, E]`` of some queries and the logarithm of their softmax sums ``[h, n]``."""
    largest: Tensor | None = None
    total = summed = torch.empty(0)
    for keys in _slices(heads.key.shape[1], heads.chunk):
        scores = heads.scores(queries, keys)
        peak = scores.amax(dim=-1, keepdim=True)
        new = peak if largest is None else torch.maximum(largest, peak)
        # Where every score so far is -inf any finite number does; 0 keeps NaN away.
        base = torch.where(new == -torch.inf, torch.zeros_like(new), new)
        weights = scores.sub_(base).exp_()
        part = torch.matmul(weights.to(heads.value.dtype), heads.value[:, keys]).to(scores.dtype)
        if largest is None:
            total, summed = weights.sum(dim=-1, keepdim=True), part
        else:
            shrink = (largest - base).exp_()
            total = total.mul_(shrink).add_(weights.sum(dim=-1, keepdim=True))
            summed = summed.mul_(shrink).add_(part)
        largest = new
    assert largest is not None
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    largest = largest.masked_fill(empty, 0.0)
    return summed.div_(total), (largest + total.log()).squeeze(-1)


def _gradients(
    heads: _Heads, gradient: Tensor, log_sums: Tensor, means: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value of some heads, in the accumulator's dtype."""
    wide, narrow = log_sums.dtype, heads.query.dtype
    to_query, to_key, to_value = (
        torch.zeros(t.shape, dtype=wide, device=t.device)
        for t in (heads.query, heads.key, heads.value)
    )
    for keys in _slices(heads.key.shape[1], heads.chunk):
        for queries in _slices(heads.query.shape[1], heads.chunk):
            outer = gradient[:, queries]
            weights = heads.scores(queries, keys)
            weights.sub_(log_sums[:, queries, None]).exp_()
            to_value[:, keys] += torch.matmul(weights.to(narrow).transpose(1, 2), outer)
            change = torch.matmul(outer, heads.value[:, keys].transpose(1, 2)).to(wide)
            change.sub_(means[:, queries, None]).mul_(weights).mul_(heads.scale)
            del weights
            change = change.to(narrow)
            to_query[:, queries] += torch.matmul(change, heads.key[:, keys])
            to_key[:, keys] += torch.matmul(change.transpose(1, 2), heads.query[:, queries])
    return to_query, to_key, to_value


def _groups(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, chunk: int
) -> Iterator[_Heads]:
    """As many heads of one sample at a time as keep the number of scores small."""
    batch, count, length, _ = query.shape
    scores = min(chunk, length) * min(chunk, key.shape[2])
    together = max(1, SCORES // max(1, scores))
    for sample in range(batch):
        for chosen in _slices(count, together):
            at = (sample, chosen)
            masked = None if mask is None else mask[at]
            yield _Heads(at, query[at], key[at], value[at], masked, scale, chunk)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def _accumulator(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off: the inputs' dtype holds in the forward and in the backward pass."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
