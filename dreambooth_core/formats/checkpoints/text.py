"""CLIP text encoders: configuration, shapes and pairs of names.

OpenAI's CLIP (SD1, SDXL's first) has transformers' names in the single file. OpenCLIP (SD2,
SDXL's second) has names of its own, query, key and value in one matrix, and a text projection
that multiplies from the other side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.pairs import Pair, module
from dreambooth_core.formats.checkpoints.unet import Shapes, dimension

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
    tokens, projection = (
        "text_model.embeddings.token_embedding.weight",
        "text_projection.weight",
    )
    layers = 0
    while f"text_model.encoder.layers.{layers}.mlp.fc1.weight" in shapes:
        layers += 1
    return TextPlan(
        layers=layers,
        width=dimension(shapes, tokens, 1),
        inner=dimension(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 0),
        vocabulary=dimension(shapes, tokens, 0),
        positions=dimension(shapes, "text_model.embeddings.position_embedding.weight", 0),
        projection=dimension(shapes, projection, 0) if projection in shapes else None,
    )


def openclip_plan(shapes: Shapes) -> TextPlan:
    """The plan of a text encoder in OpenCLIP's names."""
    tokens, projection = "token_embedding.weight", "text_projection"
    layers = 0
    while f"transformer.resblocks.{layers}.mlp.c_fc.weight" in shapes:
        layers += 1
    return TextPlan(
        layers=layers,
        width=dimension(shapes, tokens, 1),
        inner=dimension(shapes, "transformer.resblocks.0.mlp.c_fc.weight", 0),
        vocabulary=dimension(shapes, tokens, 0),
        positions=dimension(shapes, "positional_embedding", 0),
        projection=dimension(shapes, projection, 1) if projection in shapes else None,
    )


def config_from_plan(plan: TextPlan, *, heads: int, activation: str, layers: int) -> dict[str, Any]:
    """A transformers CLIP text configuration.

    Args:
        plan: what the shapes say.
        heads: attention heads.
        activation: ``quick_gelu`` (OpenAI's CLIP) or ``gelu`` (OpenCLIP).
        layers: how many layers are used (SD2 stops one before the last).
    """
    kind = "CLIPTextModel" if plan.projection is None else "CLIPTextModelWithProjection"
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "vocab_size": plan.vocabulary,
        "hidden_size": plan.width,
        "intermediate_size": plan.inner,
        "projection_dim": plan.projection or plan.width,
        "num_hidden_layers": layers,
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
    names = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"]
    pairs = [Pair(f"text_model.{name}", (f"text_model.{name}",)) for name in names]
    for layer in range(plan.layers):
        here = f"text_model.encoder.layers.{layer}"
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            pairs += module(f"{here}.{name}", f"{here}.{name}")
        for name in ("self_attn.out_proj", "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"):
            pairs += module(f"{here}.{name}", f"{here}.{name}")
    pairs += module("text_model.final_layer_norm", "text_model.final_layer_norm")
    if plan.projection is not None:
        pairs.append(Pair("text_projection.weight", ("text_projection.weight",)))
    return pairs


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
        pairs += module(f"{here}.attn.out_proj", f"{there}.self_attn.out_proj")
        pairs += module(f"{here}.ln_1", f"{there}.layer_norm1")
        pairs += module(f"{here}.ln_2", f"{there}.layer_norm2")
        pairs += module(f"{here}.mlp.c_fc", f"{there}.mlp.fc1")
        pairs += module(f"{here}.mlp.c_proj", f"{there}.mlp.fc2")
    pairs += module("ln_final", "text_model.final_layer_norm")
    if plan.projection is not None:
        pairs.append(Pair("text_projection", ("text_projection.weight",), "transposed"))
    return pairs
