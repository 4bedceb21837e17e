"""What an OpenCLIP text tower holds in a single file and diffusers leaves out.

Stable Diffusion 2 reads its text from the layer before the last, so a diffusers folder has 23 of
the 24 layers and no projection. The single file has them all. What was read from a file is kept
and written back; what is not there is filled with a last layer that passes its input through,
so that every loader finds every name.
"""

from __future__ import annotations

import math

import torch

from dreambooth_core.formats.checkpoints.text import TextPlan
from dreambooth_core.formats.storage import Lazy, TensorLike

LOGIT_SCALE = math.log(100.0)
"""CLIP's temperature, clipped at 100 in training. No part of Stable Diffusion uses it."""


def remainder(
    plan: TextPlan, dtype: torch.dtype, *, last_layer: bool, device: torch.device
) -> dict[str, TensorLike]:
    """Names without prefix and neutral values for what diffusers leaves out.

    Args:
        plan: the text encoder as diffusers has it.
        dtype: what its weights are stored in.
        last_layer: whether a last layer and the projection are missing (SD2).
        device: ``meta`` to make shapes alone.
    """
    found: dict[str, TensorLike] = {
        "logit_scale": torch.tensor(LOGIT_SCALE, dtype=dtype, device=device)
    }
    if not last_layer:
        return found
    width, inner = plan.width, plan.inner
    here = f"transformer.resblocks.{plan.layers}"
    zeros: dict[str, tuple[int, ...]] = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (inner, width),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (width, inner),
        "mlp.c_proj.bias": (width,),
        "ln_1.bias": (width,),
        "ln_2.bias": (width,),
    }
    ones = {"ln_1.weight": (width,), "ln_2.weight": (width,)}
    for value, shapes in ((0.0, zeros), (1.0, ones)):
        for name, shape in shapes.items():
            found[f"{here}.{name}"] = _filled(shape, dtype, value, device)
    found["text_projection"] = torch.eye(width, dtype=dtype, device=device)
    return found


def _filled(
    shape: tuple[int, ...], dtype: torch.dtype, value: float, device: torch.device
) -> TensorLike:
    if device.type == "meta":
        return torch.empty(shape, dtype=dtype, device=device)
    return Lazy(shape, dtype, lambda: torch.full(shape, value, dtype=dtype))
