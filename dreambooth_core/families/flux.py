"""Flux.1 (Black Forest Labs 2024) and Chroma (Lodestone 2025), which was made of it.

Two streams of blocks for text and image that join into one; latents packed two by two.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files.record import (
    HostFiles,
    Tensors,
    axes,
    count,
    flow_scheduler,
)
from dreambooth_core.families.names import chroma, flux
from dreambooth_core.families.packing import image_ids, packed, unpacked
from dreambooth_core.families.transformer import (
    FEED_FORWARD,
    JOINT_ATTENTION,
    Call,
    TransformerFamily,
)
from dreambooth_core.objective.shift import FlowDefaults, linear_mu

AXES = (16, 56, 56)
"""Rotary axes of a head of 128, which no shape tells."""
LATENTS = {"scaling_factor": 0.3611, "shift_factor": 0.1159}
"""Of its autoencoder, which Chroma, Z-Image and Lumina 2 have too."""
SHIFT_BY_SIZE = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "shift": 3.0,
}
NORMS = {
    f"{blocks}.{norm}.{host}_norm": f"{ours}.attn.norm_{added}{host[0]}"
    for blocks, ours, norm, added in (
        ("double_blocks.#", "transformer_blocks.#", "img_attn.norm", ""),
        ("double_blocks.#", "transformer_blocks.#", "txt_attn.norm", "added_"),
        ("single_blocks.#", "single_transformer_blocks.#", "norm", ""),
    )
    for host in ("query", "key")
}
"""The hosts' norms of queries and keys in diffusers' names; Flux.2 and Chroma have the same."""
SCALES = ("query_norm", "key_norm")


def blocks_of(tensors: Tensors) -> dict[str, Any]:
    """What the configurations of Flux.1, Flux.2 and Chroma have in common."""
    width, inputs = tensors["x_embedder.weight"].shape
    head = len(tensors["single_transformer_blocks.0.attn.norm_q.weight"])
    return {
        "in_channels": inputs,
        "num_layers": count(tensors, "transformer_blocks."),
        "num_single_layers": count(tensors, "single_transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
    }


def _flux_config(tensors: Tensors) -> dict[str, Any]:
    found = blocks_of(tensors)
    embedder = "time_text_embed"
    return {
        **found,
        "_class_name": "FluxTransformer2DModel",
        "axes_dims_rope": axes(AXES, found["attention_head_dim"]),
        "pooled_projection_dim": tensors[f"{embedder}.text_embedder.linear_1.weight"].shape[1],
        "guidance_embeds": f"{embedder}.guidance_embedder.linear_1.weight" in tensors,
    }


def _flux_scheduler(file: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Schnell has neither an embedding of the guidance nor a shift."""
    return flow_scheduler(**SHIFT_BY_SIZE if config["guidance_embeds"] else {"shift": 1.0})


def _chroma_config(tensors: Tensors) -> dict[str, Any]:
    found = blocks_of(tensors)
    hidden, channels = tensors["distilled_guidance_layer.in_proj.weight"].shape
    return {
        **found,
        "_class_name": "ChromaTransformer2DModel",
        "axes_dims_rope": axes(AXES, found["attention_head_dim"]),
        "approximator_num_channels": channels,
        "approximator_hidden_dim": hidden,
        "approximator_layers": count(tensors, "distilled_guidance_layer.layers."),
    }


FLUX_FILES = HostFiles(
    names=flux.NAMES,
    keys=(
        "double_blocks.0.img_attn.qkv.weight",
        "double_blocks.0.img_mod.lin.weight",
        "vector_in.in_layer.weight",
    ),
    config=_flux_config,
    scheduler=_flux_scheduler,
    norms=NORMS,
    scales=SCALES,
    texts={"text_encoder": "CLIP-L", "text_encoder_2": "T5-XXL"},
    text_widths={
        "text_encoder": ("pooled_projection_dim", 1),
        "text_encoder_2": ("joint_attention_dim", 1),
    },
    latents=LATENTS,
)
CHROMA_FILES = HostFiles(
    names=chroma.NAMES,
    keys=("double_blocks.0.img_attn.qkv.weight", "distilled_guidance_layer.in_proj.weight"),
    without=("nerf_image_embedder.embedder.0.weight",),
    config=_chroma_config,
    scheduler=lambda file, config: flow_scheduler(**SHIFT_BY_SIZE),
    norms={**NORMS, "distilled_guidance_layer.norms.#": "distilled_guidance_layer.norms.#"},
    scales=(*SCALES, "distilled_guidance_layer.norms.#"),
    texts={"text_encoder": "T5-XXL"},
    text_widths={"text_encoder": ("joint_attention_dim", 1)},
    latents=LATENTS,
)


class Flux(TransformerFamily):
    """Flux.1 dev, Krea and schnell: CLIP's pooled output and T5; dev is told its guidance."""

    name: ClassVar[str] = "flux"
    label: ClassVar[str] = "Flux.1"
    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.FluxTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
        "text_encoder_2": "transformers.T5EncoderModel",
    }
    files: ClassVar[HostFiles | None] = FLUX_FILES
    pooled: ClassVar[str] = "pooled_projection_dim"
    # The guidance is told to dev; schnell has none.
    negatives: ClassVar[bool] = False
    # diffusers' scripts train uniformly: their scheduler shifts by size, and only when sampling.
    flow: ClassVar[FlowDefaults] = FlowDefaults(resolution_mu=linear_mu())
    # A quarter of its weights modulate: 3.2 of 11.9 billion, a layer for each block and stream,
    # where later models share one. They are quantised, as in the 4-bit files that people run.
    whole_layers: ClassVar[str] = (
        r"^(x_embedder|context_embedder|time_text_embed|distilled_guidance_layer|norm_out|proj_out)\b"
    )
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn\.(to_q|to_v)$",
        "attention": rf"\.attn\.({JOINT_ATTENTION})$",
        "transformer": rf"\.(attn\.({JOINT_ATTENTION})|{FEED_FORWARD}|proj_mlp|proj_out)$",
        "all": r"\.(attn|ff|ff_context|norm|norm1|norm1_context)\.|\.(proj_mlp|proj_out)$",
    }

    distilled: ClassVar[str] = (
        "this is Flux.1 schnell, distilled to few steps: the longer it is trained the more of "
        "that it forgets. Better is to train on dev, whose adapters schnell takes too."
    )

    def is_distilled(self, parts: Components) -> bool:
        return not parts.is_told_guidance

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        embeds, pooled, _ = self.encoded(parts, prompts)
        return Conditioning(embeds, pooled)

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        embeds = text.embeds
        return {
            "hidden_states": packed(noisy),
            "timestep": times,
            "encoder_hidden_states": embeds,
            "txt_ids": embeds.new_zeros(embeds.shape[1], 3),
            "img_ids": image_ids(noisy),
            **self.further(parts, noisy, text),
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        return unpacked(answer, *noisy.shape[-2:])

    def further(self, parts: Components, noisy: Tensor, text: Conditioning) -> Call:
        """What the denoiser takes besides."""
        return {"pooled_projections": text.pooled, "guidance": self.told(parts, noisy)}

    def latents_of(self, parts: Components, made: Tensor, height: int, width: int) -> Tensor:
        return unpacked(made, *self.latent_shape(parts.configs, height, width)[1:])


class Chroma(Flux):
    """Chroma: T5 alone, no guidance told, and a mask of the prompt."""

    name: ClassVar[str] = "chroma"
    label: ClassVar[str] = "Chroma"
    pipelines: ClassVar[tuple[str, ...]] = ("ChromaPipeline",)
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.ChromaTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.T5EncoderModel",
    }

    distilled: ClassVar[str] = ""
    files: ClassVar[HostFiles | None] = CHROMA_FILES
    pooled: ClassVar[str] = ""
    negatives: ClassVar[bool] = True

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """The mask has 1 for the prompt and one token of padding after it."""
        embeds, _, mask, *_ = self.encoded(parts, prompts, do_classifier_free_guidance=False)
        return Conditioning(embeds, mask=mask)

    def further(self, parts: Components, noisy: Tensor, text: Conditioning) -> Call:
        """The mask in numbers, as diffusers' pipeline gives it: it then weighs the prompt up by e
        instead of hiding the padding. Training with another would be training another model
        than is sampled."""
        if text.mask is None:
            raise ValueError("Chroma needs the mask of its prompts")
        image = noisy.new_ones(len(noisy), noisy.shape[-2] * noisy.shape[-1] // 4)
        return {"attention_mask": torch.cat([text.mask.to(noisy), image], dim=1)}

    def pipeline_modules(self, parts: Components) -> dict[str, Any]:
        return {**super().pipeline_modules(parts), "image_encoder": None, "feature_extractor": None}

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        embeds = super().blank(parts, batch, dtype).embeds
        return Conditioning(embeds, mask=embeds.new_empty(embeds.shape[:2]))
