"""Lumina-Image 2 (Alpha-VLLM 2025): one stream of text and image tokens, Gemma 2 text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components
from dreambooth_core.families.flux import LATENTS
from dreambooth_core.families.host_files.record import (
    HostFiles,
    Tensors,
    axes,
    count,
    flow_scheduler,
)
from dreambooth_core.families.names.lumina2 import BLOCKS, NAMES
from dreambooth_core.families.transformer import Call, TransformerFamily

AXES = (32, 32, 32)
"""Rotary axes of a head of 96."""
FEED_FORWARD = 256
"""Its inner width is rounded up to a multiple of it."""


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["x_embedder.weight"].shape
    head = len(tensors["layers.0.attn.norm_q.weight"])
    inner = len(tensors["layers.0.feed_forward.linear_1.weight"])
    return {
        "_class_name": "Lumina2Transformer2DModel",
        "in_channels": inputs // 4,
        "hidden_size": width,
        "num_layers": count(tensors, "layers."),
        "num_refiner_layers": count(tensors, "noise_refiner."),
        "num_attention_heads": width // head,
        "num_kv_heads": len(tensors["layers.0.attn.to_k.weight"]) // head,
        "multiple_of": math.gcd(inner, FEED_FORWARD),
        "axes_dim_rope": axes(AXES, head),
        "axes_lens": [300, 512, 512],
        "cap_feat_dim": len(tensors["time_caption_embed.caption_embedder.0.weight"]),
    }


_MODULATED = ("layers.#", "noise_refiner.#")

FILES = HostFiles(
    names=NAMES,
    keys=(
        "cap_embedder.0.weight",
        "layers.0.attention.qkv.weight",
        "layers.0.adaLN_modulation.1.weight",
    ),
    without=("clip_text_pooled_proj.0.weight",),  # NewBie, which reads prompts otherwise
    config=_config,
    scheduler=lambda file, config: flow_scheduler(shift=6.0),
    norms={
        "cap_embedder.0": "time_caption_embed.caption_embedder.0",
        **{
            f"{block}.attention.{letter}_norm": f"{block}.attn.norm_{letter}"
            for block in BLOCKS
            for letter in "qk"
        },
        **{f"{block}.attention_norm1": f"{block}.norm1.norm" for block in _MODULATED},
        "context_refiner.#.attention_norm1": "context_refiner.#.norm1",
        **{f"{block}.attention_norm2": f"{block}.norm2" for block in BLOCKS},
    },
    unused=("norm_final.weight",),
    ones={"norm_final.weight": "layers.0.norm2.weight"},
    texts={"text_encoder": "Gemma 2 2B"},
    text_widths={"text_encoder": ("cap_feat_dim", 1)},
    latents=LATENTS,
    patch=1,
)


class Lumina2(TransformerFamily):
    """Lumina-Image 2: 26 blocks and two refiners of two, 2.6 billion weights."""

    name: ClassVar[str] = "lumina2"
    label: ClassVar[str] = "Lumina 2"
    pipelines: ClassVar[tuple[str, ...]] = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.Lumina2Transformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Gemma2Model",
    }
    files: ClassVar[HostFiles | None] = FILES
    most_tokens: ClassVar[int] = 256
    context: ClassVar[str] = "cap_feat_dim"
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn\.(to_q|to_v)$",
        "attention": r"\.attn\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.(attn\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.linear_[123])$",
        "all": r"\.(attn|feed_forward|norm1)\.",
    }

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        return self._encode(parts, prompts, "")[0]

    def _encode(
        self, parts: Components, prompts: Sequence[str], negative: str
    ) -> tuple[Conditioning, Conditioning]:
        """Prompts behind the system prompt, and a negative one, which gets none."""
        embeds, mask, other, other_mask = self.encoded(
            parts, prompts, negative_prompt=[negative] * len(prompts)
        )
        return Conditioning(embeds, mask=mask), Conditioning(other, mask=other_mask)

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """It counts the share of the image, and answers with the direction towards it."""
        return {
            "hidden_states": noisy,
            "timestep": 1.0 - times,
            "encoder_hidden_states": text.embeds,
            "encoder_attention_mask": text.mask,
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        return -answer

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        found, other = (
            self.given(parts, self.placed(parts, both))
            for both in self._encode(parts, prompts, negative)
        )
        unwanted = {f"negative_{key}": value for key, value in other.items()}
        return {**found, **unwanted, "guidance_scale": guidance}

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        # The mask's numbers are asked for, which the meta device does not have.
        mask = torch.ones(batch, self.most_tokens, dtype=torch.int64)
        return replace(super().blank(parts, batch, dtype), mask=mask)
