"""8-bit floating point as ComfyUI stores it: plain, or with a factor beside each weight."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping

import torch
from torch import Tensor

SCALES = (".scale_weight", ".weight_scale")
"""Ends of the name of a weight's factor; the older one and the newer."""
MARKS = re.compile(
    r"(^|\.)(scaled_fp8|scale_input|input_scale|scale_weight|weight_scale|comfy_quant)$"
)
"""What stands beside weights in 8 bits, and means nothing beside one in full."""


def is_fp8(dtype: torch.dtype) -> bool:
    """Whether it is floating point in 8 bits."""
    return dtype.is_floating_point and dtype.itemsize == 1


def scale_of(weight: str, names: Container[str]) -> str | None:
    """The name of the factor of the weight with this name; ``None`` where it has none."""
    base = weight.removesuffix(".weight")
    found = (f"{base}{end}" for end in SCALES)
    return next((name for name in found if weight != base and name in names), None)


def scaled(value: Tensor, scale: Tensor | None) -> Tensor:
    """The numbers that are meant, in fp32; ``scale`` is one for all or one for each row."""
    full = value.float()
    if scale is None:
        return full
    return full * scale.float().reshape(scale.shape + (1,) * (full.dim() - scale.dim()))


def in_full(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's tensors with those in 8 bits as fp16, which holds each plain one exactly; without
    factors and marks. The others are passed on."""
    if not any(is_fp8(tensor.dtype) for tensor in tensors.values()):
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        if is_fp8(tensor.dtype):
            scale = scale_of(name, tensors)
            tensor = scaled(tensor, tensors[scale] if scale else None).to(torch.float16)
        if not MARKS.search(name):
            found[name] = tensor
    return found
