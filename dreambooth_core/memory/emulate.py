"""Runs a model on the meta device as it would run on a GPU, without numbers.

The meta device has neither autocast nor fused attention; both decide what is kept for the
backward pass, so both are acted out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_PRODUCTS = {F.linear, F.conv2d, torch.conv2d, torch.matmul, torch.bmm, Tensor.matmul}
_PRODUCTS |= {Tensor.__matmul__, torch.baddbmm}
# torch's autocast lists, as far as Stable Diffusion's models call them.
_HALF = _PRODUCTS | {torch.addmm, torch.mm, torch.einsum, F.scaled_dot_product_attention}
# On GPUs only; the CPU's autocast leaves the norms in half precision.
_SINGLE = {F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, F.mse_loss}


def _summands(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many products make one number of the result."""
    if func is torch.baddbmm:
        return int(args[1].shape[-1])
    if func in (F.conv2d, torch.conv2d):
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        return int(weight[0].numel())
    first = args[0] if args else kwargs["input"]
    return int(first.shape[-1])


class FusedAttention(Function):
    """What a fused attention kernel keeps: its inputs, its output, a number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Kernels give the heads' axis back behind the tokens', so that reshaping is free.
        batch, heads, length, _ = query.shape
        output = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


class Emulation(TorchFunctionMode):
    """Inside, autocast to ``dtype`` (if given) and fused attention are acted out.

    Args:
        dtype: autocast's half precision; None where autocast is off.
        norms_in_fp32: as GPUs do it.
    """

    def __init__(self, dtype: torch.dtype | None, *, norms_in_fp32: bool) -> None:
        super().__init__()
        self._dtype = dtype
        self._norms_in_fp32 = norms_in_fp32
        self._copies: dict[int, Tensor] = {}
        self.operations = 0
        """Floating-point operations of the matrix products, convolutions and attention so far."""
        self.weights: dict[int, Tensor] = {}
        """The trained weight of each half-precision copy, by the copy's storage. Autocast keeps
        these copies until the forward pass is over."""

    @property
    def copied(self) -> int:
        """Bytes of all copies."""
        return sum(c.numel() * c.element_size() for c in self._copies.values())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._dtype is not None:
            if func in _HALF:
                args, kwargs = tree_map(partial(self._convert, self._dtype), (args, kwargs))
            elif self._norms_in_fp32 and func in _SINGLE:
                args, kwargs = tree_map(partial(self._convert, torch.float32), (args, kwargs))
        if func is F.scaled_dot_product_attention:
            named = (kwargs[name] for name in ("query", "key", "value") if name in kwargs)
            query, key, value = (*args[:3], *named)
            self.operations += 4 * query.numel() * key.shape[-2]
            return FusedAttention.apply(query, key, value)
        found = func(*args, **kwargs)
        if func in _PRODUCTS:
            self.operations += 2 * found.numel() * _summands(func, args, kwargs)
        return found

    def _convert(self, dtype: torch.dtype, value: Any) -> Any:
        if (
            not isinstance(value, Tensor)
            or not value.is_floating_point()
            or value.dtype == dtype
            or value.dtype == torch.float64
        ):
            return value
        if value.is_leaf and value.requires_grad and dtype == self._dtype:
            if id(value) not in self._copies:
                copy = self._copies[id(value)] = value.to(dtype)
                self.weights[copy.untyped_storage()._cdata] = value
            return self._copies[id(value)]
        return value.to(dtype)
