"""Language models in the hosts' files: their configurations from shapes, and their names.

Names are without ``model.`` and ``language_model.``; what a model that also sees images sees with
stands behind ``visual.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dreambooth_core.families.hosts import axes, count

Tensors = Mapping[str, Tensor]

QWEN3_FACTS: dict[str, Any] = {
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
}
"""What the shapes of Qwen3 do not tell; equal in 0.6B, 4B and 8B."""

QWEN3_VL_FACTS: dict[str, Any] = {
    "max_position_embeddings": 262144,
    "rope_theta": 5000000.0,
    "rms_norm_eps": 1e-6,
}
QWEN25_VL_FACTS: dict[str, Any] = {
    "max_position_embeddings": 128000,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
}
QWEN25_HEAD = 128
GEMMA2_HEAD = 256
"""Numbers of a head, which no shape tells."""

QWEN3_CHAT = (
    "{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{%- if add_generation_prompt %}<|im_start|>assistant\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{ '\n<think>\n\n</think>\n\n' }}{%- else %}{{ '\n' }}{%- endif %}{%- endif %}"
)
"""What Qwen3's own chat template makes of plain messages. The hosts' tokenizer folders are Qwen
2.5's, whose template puts a sentence of its own before the prompt."""


def _sizes(tensors: Tensors, head: int) -> dict[str, Any]:
    layer = "layers.0."
    words, width = tensors["embed_tokens.weight"].shape
    return {
        "vocab_size": words,
        "hidden_size": width,
        "intermediate_size": len(tensors[f"{layer}mlp.gate_proj.weight"]),
        "num_hidden_layers": count(tensors, "layers."),
        "num_attention_heads": len(tensors[f"{layer}self_attn.q_proj.weight"]) // head,
        "num_key_value_heads": len(tensors[f"{layer}self_attn.k_proj.weight"]) // head,
    }


def _head(tensors: Tensors) -> int:
    return len(tensors["layers.0.self_attn.q_norm.weight"])


def qwen3_config(tensors: Tensors) -> dict[str, Any]:
    head = _head(tensors)
    return {
        "model_type": "qwen3",
        **_sizes(tensors, head),
        "head_dim": head,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **QWEN3_FACTS,
    }


def qwen3_vl_config(tensors: Tensors) -> dict[str, Any]:
    head = _head(tensors)
    scaling = {
        "mrope_section": axes((24, 20, 20), head // 2),
        "mrope_interleaved": True,
        "rope_type": "default",
    }
    depth = count(tensors, "visual.blocks.")
    merged, width = len(tensors["visual.merger.linear_fc2.weight"]), _inside(tensors)
    taps = count(tensors, "visual.deepstack_merger_list.")
    return {
        "model_type": "qwen3_vl",
        "text_config": {
            "model_type": "qwen3_vl_text",
            **_sizes(tensors, head),
            "head_dim": head,
            "rope_scaling": scaling,
            **QWEN3_VL_FACTS,
        },
        "vision_config": {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": len(tensors["visual.blocks.0.mlp.linear_fc1.weight"]),
            "num_heads": 16,
            "out_hidden_size": merged,
            "num_position_embeddings": len(tensors["visual.pos_embed.weight"]),
            # After 5, 11 and 17 of 24 in 4B, which no shape tells and no prompt uses.
            "deepstack_visual_indexes": [(i + 1) * depth // (taps + 1) - 1 for i in range(taps)],
        },
        "tie_word_embeddings": True,
    }


def qwen25_vl_config(tensors: Tensors) -> dict[str, Any]:
    return {
        "model_type": "qwen2_5_vl",
        "text_config": {
            "model_type": "qwen2_5_vl_text",
            **_sizes(tensors, QWEN25_HEAD),
            "rope_scaling": {
                "mrope_section": axes((16, 24, 24), QWEN25_HEAD // 2),
                "rope_type": "default",
                "type": "default",
            },
            **QWEN25_VL_FACTS,
        },
        "vision_config": {
            "depth": count(tensors, "visual.blocks."),
            "hidden_size": _inside(tensors),
            "intermediate_size": len(tensors["visual.blocks.0.mlp.gate_proj.weight"]),
            "num_heads": 16,
            "out_hidden_size": len(tensors["visual.merger.mlp.2.weight"]),
        },
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }


def gemma2_config(tensors: Tensors) -> dict[str, Any]:
    return {
        "model_type": "gemma2",
        **_sizes(tensors, GEMMA2_HEAD),
        "head_dim": GEMMA2_HEAD,
    }


def _inside(tensors: Tensors) -> int:
    """The width of what sees images."""
    return len(tensors["visual.patch_embed.proj.weight"])


_PLACES = {
    "Qwen3ForCausalLM": ("model.", ""),
    "Qwen2_5_VLForConditionalGeneration": ("model.language_model.", "model."),
    "Qwen3VLModel": ("language_model.", ""),
}
"""By class: what stands before the names of text, and of what sees images."""
_HEAD = "lm_head.weight"
WORDS = "spiece_model"
"""A tokenizer that ComfyUI stores with some weights."""


def language_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    """A language model's weights in the names of a class. One that answers in words has a head,
    which is its embedding where the file has none."""
    words, images = _PLACES.get(kind, ("", ""))
    found = {
        f"{images if name.startswith('visual.') else words}{name}": value
        for name, value in tensors.items()
        if name not in (_HEAD, WORDS)
    }
    if kind.endswith(("ForCausalLM", "ForConditionalGeneration")):
        found[_HEAD] = tensors.get(_HEAD, tensors["embed_tokens.weight"])
    return found
