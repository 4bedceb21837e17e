"""Text encoders as the hosts keep them: files with transformers' names and no configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dreambooth_core.families.host_files import language as language
from dreambooth_core.families.host_files.record import HostFiles, count
from dreambooth_core.families.stable_diffusion import text

if TYPE_CHECKING:
    from dreambooth_core.families.base import Family

Tensors = Mapping[str, Tensor]

WITHIN = "llm_adapter."
"""Before the names of a text encoder that stands in the denoiser's file."""
CLIP_TOKENS = 77
CLIP_L_LAYERS = 12
"""CLIP-G has more, by which ComfyUI tells it too."""
_CLIP = "text_model.encoder.layers.{}.self_attn.q_proj.weight"
_PROJECTION = "text_projection.weight"
_QWEN_TOKENIZER = "comfy/text_encoders/qwen25_tokenizer"


@dataclass(frozen=True)
class TextKind:
    """One kind of text encoder. It is given names as :func:`canonical` has them."""

    label: str
    """With which a family's name for it begins."""
    classes: tuple[str, ...]
    """Classes of transformers that it is read as."""
    fits: Callable[[Mapping[str, Sequence[int]]], bool]
    """Told the shapes by name."""
    config: Callable[[Tensors], dict[str, Any]]
    """From its tensors (their shapes)."""
    rename: Callable[[str, Tensors], dict[str, Tensor]] = language.language_names
    """Its weights in the names of a class."""
    width: str = "hidden_size"
    """The configuration's key of its width."""
    chat: str = ""
    """The chat template that its tokenizer needs."""
    tokenizer: str = ""
    """Where ComfyUI keeps its tokenizer; empty where it does not."""
    end: str = ""
    """The token that ends a text and fills it up, where ComfyUI's tokenizer has another."""
    own: str = ""
    """The family by whose name this program has its tokenizer."""
    within: bool = False
    """Whether it stands in the denoiser's file."""

    def read(self, kind: str, tensors: Tensors) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Its configuration and its weights in the names of a class, from those in a file."""
        plain = canonical(tensors)
        renamed = self.rename(kind, plain)
        return {**self.config(plain), "architectures": [kind]}, renamed


Shapes = Mapping[str, Sequence[int]]


def _has(*names: str, without: tuple[str, ...] = ()) -> Callable[[Shapes], bool]:
    return lambda there: there.keys() >= set(names) and there.keys().isdisjoint(without)


_IS_PLAIN = _has(
    "layers.0.self_attn.q_proj.weight",
    "layers.0.mlp.gate_proj.weight",
    without=(
        "layers.0.self_attn.q_norm.weight",
        "layers.0.self_attn.k_proj.bias",
        "layers.0.pre_feedforward_layernorm.weight",
    ),
)


def _plain(*, square: bool) -> Callable[[Shapes], bool]:
    """Llama's queries are as wide as what they are made of, Mistral Small's narrower."""

    def fits(there: Shapes) -> bool:
        if not _IS_PLAIN(there):
            return False
        rows, width = there["layers.0.self_attn.q_proj.weight"]
        return (rows == width) is square

    return fits


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


def _clip(activation: str) -> Callable[[Tensors], dict[str, Any]]:
    def config(tensors: Tensors) -> dict[str, Any]:
        shapes = {name: tuple(t.shape) for name, t in tensors.items() if name != _PROJECTION}
        plan = text.clip_plan(shapes)
        heads = text.default_heads(plan.width)
        found = text.config_from_plan(plan, heads=heads, activation=activation)
        # Begin and end are the last two words; the pooled answer is the end's.
        ends = {"bos_token_id": plan.vocabulary - 2, "eos_token_id": plan.vocabulary - 1}
        return {**found, **ends}

    return config


def _clip_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in tensors.items()
        if name.startswith("text_model.") and not name.endswith("position_ids")
    }


def _clip_l_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    """The hosts project the pooled answer of the long CLIP of HiDream alone: the projection of
    others, which is of another use, counts for nothing."""
    found = _clip_names(kind, tensors)
    if kind == "CLIPTextModelWithProjection":
        if len(found["text_model.embeddings.position_embedding.weight"]) > CLIP_TOKENS:
            return _clip_g_names(kind, tensors)
        norm = found["text_model.final_layer_norm.weight"]
        found[_PROJECTION] = torch.eye(len(norm), dtype=norm.dtype, device=norm.device)
    return found


def _clip_g_names(kind: str, tensors: Tensors) -> dict[str, Tensor]:
    return {**_clip_names(kind, tensors), _PROJECTION: tensors[_PROJECTION]}


def _conditioner_config(tensors: Tensors) -> dict[str, Any]:
    words, width = tensors["embed.weight"].shape
    block = "blocks.0"
    inner, inputs = tensors[f"{block}.cross_attn.k_proj.weight"].shape
    return {
        "_class_name": "AnimaTextConditioner",
        "source_dim": inputs,
        "target_dim": width,
        "model_dim": inner,
        "num_layers": count(tensors, "blocks."),
        "num_attention_heads": inner // len(tensors[f"{block}.cross_attn.q_norm.weight"]),
        "mlp_ratio": len(tensors[f"{block}.mlp.0.weight"]) / inner,
        "target_vocab_size": words,
    }


TEXT_KINDS: tuple[TextKind, ...] = (
    TextKind(
        "Qwen3-VL",
        ("Qwen3VLModel",),
        _has("layers.0.self_attn.q_norm.weight", "visual.pos_embed.weight"),
        language.qwen3_vl_config,
        chat=language.QWEN3_VL_CHAT,
        tokenizer=_QWEN_TOKENIZER,
    ),
    TextKind(
        "Qwen3",
        ("Qwen3Model", "Qwen3ForCausalLM"),
        _has(
            "layers.0.self_attn.q_norm.weight",
            without=("visual.pos_embed.weight", "layers.0.pre_feedforward_layernorm.weight"),
        ),
        language.qwen3_config,
        chat=language.QWEN3_CHAT,
        tokenizer=_QWEN_TOKENIZER,
    ),
    TextKind(
        "Qwen2.5-VL",
        ("Qwen2_5_VLForConditionalGeneration",),
        _has("layers.0.self_attn.k_proj.bias", "visual.merger.ln_q.weight"),
        language.qwen25_vl_config,
        tokenizer=_QWEN_TOKENIZER,
    ),
    TextKind(
        "Gemma 2",
        ("Gemma2Model",),
        _has(
            "layers.0.pre_feedforward_layernorm.weight",
            without=("layers.0.self_attn.q_norm.weight",),
        ),
        language.gemma2_config,
    ),
    TextKind(
        "Mistral",
        ("Mistral3ForConditionalGeneration",),
        _plain(square=False),
        language.mistral_config,
        language.mistral_names,
    ),
    TextKind(
        "Llama",
        ("LlamaForCausalLM",),
        _plain(square=True),
        language.llama_config,
        tokenizer="comfy/text_encoders/llama_tokenizer",
        end="<|eot_id|>",
    ),
    TextKind(
        "T5",
        ("T5EncoderModel",),
        _has("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        _t5_config,
        _t5_names,
        "d_model",
        tokenizer="comfy/text_encoders/t5_tokenizer",
    ),
    TextKind(
        "CLIP-G",
        ("CLIPTextModelWithProjection",),
        lambda there: _CLIP.format(CLIP_L_LAYERS) in there,
        _clip("gelu"),
        _clip_g_names,
        own="sdxl_refiner",
    ),
    TextKind(
        "CLIP-L",
        ("CLIPTextModel", "CLIPTextModelWithProjection"),
        _has(_CLIP.format(0), without=(_CLIP.format(CLIP_L_LAYERS),)),
        _clip("quick_gelu"),
        _clip_l_names,
        own="sd1",
    ),
    TextKind(
        "conditioner",
        ("AnimaTextConditioner",),
        _has("blocks.0.cross_attn.q_proj.weight", "embed.weight", "out_proj.weight"),
        _conditioner_config,
        lambda kind, tensors: dict(tensors),
        "target_dim",
        tokenizer="comfy/text_encoders/t5_tokenizer",
        within=True,
    ),
)


def canonical(tensors: Tensors) -> dict[str, Tensor]:
    """A text encoder's tensors by names without ``model.`` and ``language_model.``, which stand
    before a language model's in one order or another, or not at all."""
    return {_canonical(name): tensor for name, tensor in tensors.items()}


def _canonical(name: str) -> str:
    while (rest := name.removeprefix("model.").removeprefix("language_model.")) != name:
        name = rest
    return name


class Shaped(Protocol):
    """A tensor, or the entry of one in a file's header."""

    @property
    def shape(self) -> Sequence[int]: ...


def text_kind(entries: Mapping[str, Shaped]) -> TextKind | None:
    """The kind of text encoder that has these names and shapes."""
    there = {_canonical(name): tuple(entry.shape) for name, entry in entries.items()}
    return next((kind for kind in TEXT_KINDS if kind.fits(there)), None)


def kind_of(family: Family, name: str) -> TextKind:
    """The kind of one of a family's text encoders, by its class and what the family calls it."""
    called = family.files.texts[name] if family.files is not None else ""
    its = family.classes[name].rpartition(".")[2]
    return next(k for k in TEXT_KINDS if its in k.classes and called.startswith(k.label))


def hosts_file(
    family: Family, files: HostFiles, states: Callable[[str], Tensors]
) -> dict[str, Tensor]:
    """What the hosts' file of a denoiser holds, in their names.

    Args:
        states: gives a network's weights in diffusers' names, by its folder there.
    """
    found = files.to_hosts(states(family.denoiser))
    for name in family.text_encoders:
        if kind_of(family, name).within:
            found |= {f"{WITHIN}{key}": tensor for key, tensor in states(name).items()}
    return found


def text_values(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a text encoder's configuration says of text, where it also says of images.
    Its words are ``vocab_size`` of all."""
    if "target_vocab_size" in config:
        return {**config, "vocab_size": config["target_vocab_size"]}
    found: Mapping[str, Any] = config.get("text_config", config)
    return found
