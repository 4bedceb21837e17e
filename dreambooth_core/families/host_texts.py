"""Text encoders as the hosts keep them: files with transformers' names and no configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dreambooth_core.families.hosts import count
from dreambooth_core.formats.checkpoints import text

Tensors = Mapping[str, Tensor]

QWEN3_FACTS: dict[str, Any] = {
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
}
"""What the shapes of Qwen3 do not tell; equal in 0.6B, 4B and 8B."""

CHAT = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '\n<think>\n\n</think>\n\n' }}{%- else %}{{ '\n' }}{%- endif %}{%- endif %}"
)
"""What Qwen3's own chat template makes of plain messages. The hosts' tokenizer folders are Qwen
2.5's, whose template puts a sentence of its own before the prompt."""


@dataclass(frozen=True)
class TextKind:
    """One kind of text encoder."""

    label: str
    classes: tuple[str, ...]
    """Classes of transformers that it is read as."""
    key: str
    config: Callable[[Tensors], dict[str, Any]]
    """From its tensors in the file's names (their shapes)."""
    rename: Callable[[str, Tensors], dict[str, Tensor]]
    """Its weights in the names of a class."""
    width: str
    """The configuration's key of its width."""
    chat: str = ""
    """The chat template that its tokenizer needs."""
    tokenizer: str = ""
    """Where ComfyUI keeps its tokenizer; empty where it comes with this program."""


def _qwen3_config(tensors: Tensors) -> dict[str, Any]:
    layer = "model.layers.0."
    head = len(tensors[f"{layer}self_attn.q_norm.weight"])
    words, width = tensors["model.embed_tokens.weight"].shape
    return {
        "model_type": "qwen3",
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{layer}mlp.gate_proj.weight"]),
        "num_hidden_layers": count(tensors, "model.layers."),
        "num_attention_heads": len(tensors[f"{layer}self_attn.q_proj.weight"]) // head,
        "num_key_value_heads": len(tensors[f"{layer}self_attn.k_proj.weight"]) // head,
        "head_dim": head,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **QWEN3_FACTS,
    }


def _qwen3_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    if kind == "Qwen3ForCausalLM":
        return {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}
    return {
        name.removeprefix("model."): value
        for name, value in tensors.items()
        if not name.startswith("lm_head.")
    }


def _t5_config(tensors: Tensors) -> dict[str, Any]:
    layer = "encoder.block.0.layer."
    words, width = tensors["shared.weight"].shape
    heads = tensors[f"{layer}0.SelfAttention.relative_attention_bias.weight"].shape[1]
    return {
        "model_type": "t5",
        "vocab_size": words,
        "d_model": width,
        "d_kv": len(tensors[f"{layer}0.SelfAttention.q.weight"]) // heads,
        "d_ff": len(tensors[f"{layer}1.DenseReluDense.wi_0.weight"]),
        "num_layers": count(tensors, "encoder.block."),
        "num_heads": heads,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
    }


def _t5_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    return {"encoder.embed_tokens.weight": tensors["shared.weight"], **tensors}


def _clip_config(tensors: Tensors) -> dict[str, Any]:
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if "projection" not in name}
    plan = text.clip_plan(shapes)
    heads = text.default_heads(plan.width)
    found = text.config_from_plan(plan, heads=heads, activation="quick_gelu", layers=plan.layers)
    # Begin and end are the last two words; the pooled answer is the end's.
    return {**found, "bos_token_id": plan.vocabulary - 2, "eos_token_id": plan.vocabulary - 1}


def _clip_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in tensors.items()
        if name.startswith("text_model.") and not name.endswith("position_ids")
    }


TEXT_KINDS: tuple[TextKind, ...] = (
    TextKind(
        "Qwen3",
        ("Qwen3Model", "Qwen3ForCausalLM"),
        "model.layers.0.self_attn.q_norm.weight",
        _qwen3_config,
        _qwen3_names,
        "hidden_size",
        CHAT,
        "comfy/text_encoders/qwen25_tokenizer",
    ),
    TextKind(
        "T5",
        ("T5EncoderModel",),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        _t5_config,
        _t5_names,
        "d_model",
        tokenizer="comfy/text_encoders/t5_tokenizer",
    ),
    TextKind(
        "CLIP",
        ("CLIPTextModel",),
        "text_model.encoder.layers.0.self_attn.q_proj.weight",
        _clip_config,
        _clip_names,
        "hidden_size",
    ),
)


def text_kind(names: Iterable[str]) -> TextKind | None:
    """The kind of text encoder that has these names."""
    there = set(names)
    return next((kind for kind in TEXT_KINDS if kind.key in there), None)


def kind_of_class(name: str) -> TextKind:
    """The kind that is read as this class, ``library.Class``."""
    return next(kind for kind in TEXT_KINDS if name.rpartition(".")[2] in kind.classes)
