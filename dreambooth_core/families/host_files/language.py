"""Language models in the hosts' files: their configurations from shapes, and their names.

Names are without ``model.`` and ``language_model.``; what a model that also sees images sees with
stands behind ``visual.``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.families.host_files.record import axes, count

Tensors = Mapping[str, Tensor]


def _facts(positions: int, rope: float, norm: float = 1e-6, **more: Any) -> dict[str, Any]:
    own = {"max_position_embeddings": positions, "rope_theta": rope, "rms_norm_eps": norm}
    return {**own, **more}


# What shapes do not tell.
QWEN3_FACTS = _facts(40960, 1000000.0)  # equal in 0.6B, 4B and 8B
QWEN3_VL_FACTS = _facts(262144, 5000000.0)
QWEN25_VL_FACTS = _facts(128000, 1000000.0)
MISTRAL_FACTS = _facts(131072, 1000000000.0, 1e-5)
LLAMA_FACTS = _facts(  # of Llama 3.1
    131072,
    500000.0,
    1e-5,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
LLAMA_HEAD = 128
MISTRAL_READ = 30
"""The last of its layers that Flux.2 reads."""
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

QWEN3_VL_CHAT = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The same of Qwen3-VL, for messages without images."""
MISTRAL_CHAT = (
    "{{- bos_token }}{%- for message in messages %}"
    "{%- set mark = 'SYSTEM_PROMPT' if message.role == 'system' else 'INST' %}"
    "{{- '[' + mark + ']' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}"
    "{%- for part in message.content %}{{- part.text }}{%- endfor %}{%- endif %}"
    "{{- '[/' + mark + ']' }}{%- endfor %}"
)
"""What Mistral Small 3's makes of a system's and a user's message."""


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


def llama_config(tensors: Tensors) -> dict[str, Any]:
    return {
        "model_type": "llama",
        **_sizes(tensors, LLAMA_HEAD),
        "head_dim": LLAMA_HEAD,
        "tie_word_embeddings": "lm_head.weight" not in tensors,
        **LLAMA_FACTS,
    }


def mistral_config(tensors: Tensors) -> dict[str, Any]:
    sizes = _sizes(tensors, LLAMA_HEAD)
    if sizes["num_hidden_layers"] < MISTRAL_READ:
        raise ValueError(f"layer {MISTRAL_READ}")
    sizes["num_hidden_layers"] += _is_cut(tensors)
    return {
        "model_type": "mistral3",
        "text_config": {
            "model_type": "mistral",
            **sizes,
            "head_dim": LLAMA_HEAD,
            "sliding_window": None,
            **MISTRAL_FACTS,
        },
        "vision_config": {
            "model_type": "pixtral",
            "hidden_size": _BLIND,
            "intermediate_size": _BLIND,
            "num_hidden_layers": 0,
            "num_attention_heads": 1,
            "head_dim": _BLIND,
        },
        "tie_word_embeddings": False,
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
    "LlamaForCausalLM": ("model.", ""),
    "Mistral3ForConditionalGeneration": ("model.language_model.", ""),
    "Qwen3ForCausalLM": ("model.", ""),
    "Qwen2_5_VLForConditionalGeneration": ("model.language_model.", "model."),
    "Qwen3VLModel": ("language_model.", ""),
}
"""By class: what stands before the names of text, and of what sees images."""
_HEAD = "lm_head.weight"
WORDS = ("spiece_model", "tekken_model")
"""Tokenizers that ComfyUI stores with some weights."""
_SIGHT = ("vision_tower.", "multi_modal_projector.")
_BLIND = 4
"""Width of what sees images in a Mistral that is read for text alone."""


def language_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    """A language model's weights in the names of a class. One that answers in words has a head,
    which is its embedding where the file has none."""
    words, images = _PLACES.get(kind, ("", ""))
    found = {
        f"{images if name.startswith('visual.') else words}{name}": value
        for name, value in tensors.items()
        if name not in (_HEAD, *WORDS)
    }
    if kind.endswith(("ForCausalLM", "ForConditionalGeneration")):
        found[_HEAD] = tensors.get(_HEAD, tensors["embed_tokens.weight"])
    return found


def _is_cut(tensors: Tensors) -> bool:
    """Whether the last layers and the norm behind them are left out, as ComfyUI has Flux.2's
    Mistral: nobody reads what lies behind the 30th layer."""
    return "norm.weight" not in tensors


def mistral_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    """Mistral's weights, for prompts: what sees images has no layers, whatever the file has of it.

    One that is cut gets a last layer that passes on what it is given, so that the answer of the
    layer before it is read as in a whole one: without the norm."""
    words = {name: value for name, value in tensors.items() if not name.startswith(_SIGHT)}
    if _is_cut(tensors):
        before, last = (f"layers.{count(words, 'layers.') - back}." for back in (1, 0))
        words |= {
            last + name.removeprefix(before): torch.zeros_like(value)
            for name, value in list(words.items())
            if name.startswith(before)
        }
        norm = words[f"{before}input_layernorm.weight"]
        words["norm.weight"] = torch.ones_like(norm)
    like = words["embed_tokens.weight"]
    width, sees = like.shape[1], _BLIND
    blind = {
        "vision_tower.patch_conv": (sees, 3, 16, 16),
        "vision_tower.ln_pre": (sees,),
        "multi_modal_projector.norm": (sees,),
        "multi_modal_projector.patch_merger.merging_layer": (sees, 4 * sees),
        "multi_modal_projector.linear_1": (width, sees),
        "multi_modal_projector.linear_2": (width, width),
    }
    return {
        **language_names(kind, words),
        **{f"model.{name}.weight": like.new_zeros(shape) for name, shape in blind.items()},
    }
