"""A base whose linear layers lie in memory with 8 or 4 bits a weight, for training adapters.

``int8``: one scale for each output (absolute maximum), in plain torch, on every device.
``fp8``: 8-bit floats (e4m3, Micikevicius et al. 2022, arXiv:2209.05433) with a scale for each
output, in plain torch. Rounder than int8, but what a file holds in fp8 stays exactly that.
``nf4``: 4-bit NormalFloat in blocks of 64 (Dettmers et al. 2023, QLoRA, arXiv:2305.14314),
through bitsandbytes. The weights are turned back to the computing precision when a layer runs,
and again in its backward pass, so that no whole copy is kept; activations stay as they are.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.memory.estimate import NOTHING

BLOCK = 64
"""Weights that share a scale in nf4."""
FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max


class QuantizedLinear(nn.Linear):
    """A frozen linear layer that keeps its weight in few bits.

    ``weight`` gives the weight in the computing precision, made anew each time.
    """

    codes: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, kind: str) -> None:
        nn.Module.__init__(self)
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.kind = kind
        self.dtype = layer.weight.dtype
        codes, scale = _ENCODE[kind](layer.weight.detach())
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    @property
    def weight(self) -> nn.Parameter:  # type: ignore[override]
        """``[out, in]``, frozen."""
        return nn.Parameter(self._decoded(), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``."""
        if torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(torch.get_autocast_dtype(inputs.device.type))
        output: Tensor = _Product.apply(inputs, self)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    def plain(self) -> nn.Linear:
        """An ordinary layer with the same, already rounded, weight."""
        layer = nn.Linear(self.in_features, self.out_features, device="meta")
        layer.weight, layer.bias = self.weight, self.bias
        return layer

    def _decoded(self) -> Tensor:
        weight = _DECODE[self.kind](self.codes, self.scale, (self.out_features, self.in_features))
        return weight.to(self.dtype)


class _Product(torch.autograd.Function):
    """``inputs · weightᵀ`` that saves nothing: the weight is decoded again for the backward."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(inputs, layer._decoded().to(inputs.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0]
        return gradient @ ctx.layer._decoded().to(gradient.dtype), None


def quantize(
    model: nn.Module,
    kind: str,
    whole: str = NOTHING,
    device: torch.device | None = None,
    home: torch.device | None = None,
) -> int:
    """Puts the linear layers of a frozen model into few bits, in place.

    Args:
        kind: ``int8``, ``fp8`` or ``nf4``.
        whole: a regular expression; layers in whose name it is found stay as they are.
        device: where each layer is brought before, one at a time: the model need not fit there
            as it was. Layers that stay as they are stay where they are.
        home: where each layer is brought after; None leaves it there.

    Returns:
        How many layers there were.

    Raises:
        UserError: bitsandbytes, which nf4 needs, is not installed.
    """
    stays = re.compile(whole)
    layers = [
        (n, m) for n, m in model.named_modules() if type(m) is nn.Linear and not stays.search(n)
    ]
    for name, layer in layers:
        quantized = QuantizedLinear(layer.to(device or layer.weight.device), kind)
        model.set_submodule(name, quantized.to(home) if home else quantized)
    return len(layers)


def dequantize(model: nn.Module) -> None:
    """Makes ordinary layers of quantised ones, in place; the rounding stays."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            model.set_submodule(name, layer.plain())


def require_package(kind: str) -> None:
    """Raises ``UserError`` if what a kind of quantising needs is not installed."""
    if kind == "nf4":
        _bitsandbytes()


def _encode_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    values = weight.float()
    scale = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return (values / scale).round().to(torch.int8), scale


def _encode_fp8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes as bytes, which no change of precision touches, and the scales that lose least: powers
    of two keep what was fp8 without scales, one for all what a host's file has with its scale, and
    one for each output suits all others."""
    values = weight.float()
    limit = values.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / LARGEST
    found = []
    for scale in (limit / limit.frexp().mantissa, limit.amax().expand_as(limit), limit):
        codes = (values / scale).clamp(-LARGEST, LARGEST).to(FP8)
        error = (codes.float() * scale - values).square().sum()
        found.append((float(error), codes.view(torch.uint8), scale.contiguous()))
    _, codes, scale = min(found, key=lambda each: each[0])
    return codes, scale


def _decode_scaled(codes: Tensor, scale: Tensor, shape: tuple[int, int]) -> Tensor:
    return (codes.view(FP8) if codes.dtype == torch.uint8 else codes).float() * scale


def _encode_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    packed, state = _bitsandbytes().quantize_4bit(
        weight.float().contiguous(), blocksize=BLOCK, quant_type="nf4"
    )
    return packed, state.absmax


def _decode_nf4(codes: Tensor, scale: Tensor, shape: tuple[int, int]) -> Tensor:
    functional = _bitsandbytes()
    state = functional.QuantState(
        absmax=scale,
        shape=torch.Size(shape),
        code=functional.get_4bit_type("nf4", device=codes.device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.float32,
    )
    weight: Tensor = functional.dequantize_4bit(codes, state)
    return weight


def _bitsandbytes() -> Any:
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            "a 4-bit base needs bitsandbytes, which is not installed",
            where="memory.quantize",
            do="pip install bitsandbytes, or use int8.",
        ) from error
    return functional


_ENCODE = {"int8": _encode_int8, "fp8": _encode_fp8, "nf4": _encode_nf4}
_DECODE = {"int8": _decode_scaled, "fp8": _decode_scaled, "nf4": _decode_nf4}
