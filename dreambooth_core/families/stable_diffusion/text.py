"""CLIP text encoders: configuration, shapes and pairs of names.

OpenAI's CLIP (SD1, SDXL's first) has transformers' names in the single file. OpenCLIP (SD2,
SDXL's second) has names of its own, query, key and value in one matrix, and a text projection
that multiplies from the other side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.unet import Shapes, dimension
from dreambooth_core.formats.checkpoints.pairs import Pair, module, modules
from dreambooth_core.formats.storage import Lazy, TensorLike

LOGIT_SCALE = math.log(100.0)
"""CLIP's temperature, clipped at 100 in training. No part of Stable Diffusion uses it."""
HEAD_WIDTH = 64
"""Channels of an attention head in every CLIP text tower that Stable Diffusion uses."""


@dataclass(frozen=True)
class TextPlan:
    """Everything about a text encoder that its weights' names and shapes depend on."""

    layers: int
    width: int
    inner: int
    """Width inside the feed-forward layers."""
    vocabulary: int
    positions: int
    projection: int | None
    """Width of the projected pooled text, or ``None`` without a projection."""


def plan_from_config(config: Mapping[str, Any], *, projected: bool) -> TextPlan:
    """The plan of a transformers CLIP text configuration."""
    return TextPlan(
        layers=int(config["num_hidden_layers"]),
        width=int(config["hidden_size"]),
        inner=int(config["intermediate_size"]),
        vocabulary=int(config.get("vocab_size", 49408)),
        positions=int(config.get("max_position_embeddings", 77)),
        projection=int(config.get("projection_dim") or config["hidden_size"])
        if projected
        else None,
    )


def clip_plan(shapes: Shapes) -> TextPlan:
    """The plan of a text encoder in transformers' names, with ``text_model.``."""
    embeddings = "text_model.embeddings.{}_embedding.weight"
    return _plan(
        shapes,
        (embeddings.format("token"), embeddings.format("position"), "text_projection.weight"),
        "text_model.encoder.layers.{}.mlp.fc1.weight",
        projected=0,
    )


def openclip_plan(shapes: Shapes) -> TextPlan:
    """The plan of a text encoder in OpenCLIP's names."""
    names = ("token_embedding.weight", "positional_embedding", "text_projection")
    return _plan(shapes, names, "transformer.resblocks.{}.mlp.c_fc.weight", projected=1)


def _plan(shapes: Shapes, names: tuple[str, str, str], inner: str, *, projected: int) -> TextPlan:
    """``names``: of tokens, positions and projection, with its answer on axis ``projected``."""
    tokens, positions, projection = names
    layers = 0
    while inner.format(layers) in shapes:
        layers += 1
    return TextPlan(
        layers=layers,
        width=dimension(shapes, tokens, 1),
        inner=dimension(shapes, inner.format(0), 0),
        vocabulary=dimension(shapes, tokens, 0),
        positions=dimension(shapes, positions, 0),
        projection=dimension(shapes, projection, projected) if projection in shapes else None,
    )


def config_from_plan(plan: TextPlan, *, heads: int, activation: str) -> dict[str, Any]:
    """A transformers CLIP text configuration.

    Args:
        activation: ``quick_gelu`` (OpenAI's CLIP) or ``gelu`` (OpenCLIP).
    """
    kind = "CLIPTextModel" if plan.projection is None else "CLIPTextModelWithProjection"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": plan.vocabulary,
        "hidden_size": plan.width,
        "intermediate_size": plan.inner,
        "projection_dim": plan.projection or plan.width,
        "num_hidden_layers": plan.layers,
        "num_attention_heads": heads,
        "max_position_embeddings": plan.positions,
        "hidden_act": activation,
        "layer_norm_eps": 1e-05,
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 1,
    }


def default_heads(width: int) -> int:
    """Attention heads of 64 channels. Raises ``UserError`` where that leaves a rest."""
    if width % HEAD_WIDTH:
        raise UserError(
            f"the number of heads of this reduced text encoder ({width} wide) is not known",
            do="Give its yaml with --original_config_file",
        )
    return width // HEAD_WIDTH


def clip_pairs(plan: TextPlan) -> list[Pair]:
    """Every weight of a CLIP text model; the names are transformers' on both sides."""
    names = [name for pair in openclip_pairs(plan) for name in pair.diffusers]
    return [Pair(name, (name,)) for name in names]


_LAYERS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def openclip_pairs(plan: TextPlan) -> list[Pair]:
    """Every weight of an OpenCLIP text tower that diffusers uses."""
    token, position = "token_embedding.weight", "position_embedding.weight"
    pairs = [
        Pair(token, (f"text_model.embeddings.{token}",)),
        Pair("positional_embedding", (f"text_model.embeddings.{position}",)),
    ]
    for layer in range(plan.layers):
        here = f"transformer.resblocks.{layer}"
        there = f"text_model.encoder.layers.{layer}"
        for end in ("weight", "bias"):
            fused = tuple(f"{there}.self_attn.{part}_proj.{end}" for part in "qkv")
            pairs.append(Pair(f"{here}.attn.in_proj_{end}", fused, "fused"))
        pairs += modules(here, there, _LAYERS)
    pairs += module("ln_final", "text_model.final_layer_norm")
    if plan.projection is not None:
        pairs.append(Pair("text_projection", ("text_projection.weight",), "transposed"))
    return pairs


def remainder(
    plan: TextPlan, dtype: torch.dtype, *, last_layer: bool, device: torch.device
) -> dict[str, TensorLike]:
    """Names without prefix and neutral values for what a single file has and diffusers has not.

    Stable Diffusion 2 reads its text from the layer before the last, so a diffusers folder has 23
    of the 24 layers and no projection. What was read from a file is kept and written back; what is
    not there is filled with a last layer that passes its input through, so that every loader finds
    every name.

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
