"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): two CLIPs and T5, two streams of blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components, Configs
from dreambooth_core.families.host_files.record import HostFiles, Tensors, count, flow_scheduler
from dreambooth_core.families.names.sd3 import NAMES
from dreambooth_core.families.transformer import (
    FEED_FORWARD,
    JOINT_ATTENTION,
    Call,
    TransformerFamily,
)
from dreambooth_core.objective.shift import FlowDefaults, root_mu

CLIP_TOKENS = 77
HEAD = 64
"""Numbers of a head, in every size."""


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs, patch, _ = tensors["pos_embed.proj.weight"].shape
    blocks = count(tensors, "transformer_blocks.")
    both = [i for i in range(blocks) if f"transformer_blocks.{i}.attn2.to_q.weight" in tensors]
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": 128,
        "patch_size": patch,
        "in_channels": inputs,
        "out_channels": len(tensors["proj_out.weight"]) // patch**2,
        "num_layers": blocks,
        "attention_head_dim": HEAD,
        "num_attention_heads": width // HEAD,
        "joint_attention_dim": tensors["context_embedder.weight"].shape[1],
        "caption_projection_dim": width,
        "pooled_projection_dim": tensors["time_text_embed.text_embedder.linear_1.weight"].shape[1],
        "pos_embed_max_size": math.isqrt(tensors["pos_embed.pos_embed"].shape[1]),
        "dual_attention_layers": both,
        "qk_norm": "rms_norm" if "transformer_blocks.0.attn.norm_q.weight" in tensors else None,
    }


FILES = HostFiles(
    names=NAMES,
    keys=("joint_blocks.0.context_block.attn.qkv.weight", "pos_embed"),
    config=_config,
    scheduler=lambda file, config: flow_scheduler(shift=3.0),
    norms={
        "pos_embed": "pos_embed.pos_embed",
        **{
            f"joint_blocks.#.{host}.ln_{letter}": f"transformer_blocks.#.{ours}{letter}"
            for host, ours in (
                ("x_block.attn", "attn.norm_"),
                ("context_block.attn", "attn.norm_added_"),
                ("x_block.attn2", "attn2.norm_"),
            )
            for letter in "qk"
        },
    },
    # There the text's stream ends: its norm is like the last of all, scale before shift.
    turned_last="transformer_blocks.#.norm1_context.linear",
    texts={
        "text_encoder": "CLIP-L",
        "text_encoder_2": "CLIP-G",
        "text_encoder_3": "T5-XXL",
    },
    text_widths={"text_encoder_3": ("joint_attention_dim", 1)},
    latents={"scaling_factor": 1.5305, "shift_factor": 0.0609},
    patch=1,
)


class StableDiffusion3(TransformerFamily):
    """SD 3 medium, 3.5 medium (with double attention) and 3.5 large."""

    name: ClassVar[str] = "sd3"
    label: ClassVar[str] = "Stable Diffusion 3"
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "tokenizer_3")
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.SD3Transformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "text_encoder_3": "transformers.T5EncoderModel",
    }
    files: ClassVar[HostFiles | None] = FILES
    # The paper's choice, section 5.3: logit-normal, and a shift of 3 at 1024 px, which by its
    # equation 23 grows with the root of the number of tokens.
    flow: ClassVar[FlowDefaults] = FlowDefaults(
        "logit_normal", shift="static", factor=3.0, resolution_mu=root_mu(4096 / 9)
    )
    most_tokens: ClassVar[int] = 256
    """Of T5; CLIP reads 77."""
    pooled: ClassVar[str] = "pooled_projection_dim"
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn2?\.(to_q|to_v)$",
        "attention": rf"\.attn2?\.({JOINT_ATTENTION})$",
        "transformer": rf"\.(attn2?\.({JOINT_ATTENTION})|{FEED_FORWARD})$",
        "all": r"\.(attn|attn2|ff|ff_context|norm1|norm1_context)\.",
    }

    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, ...]:
        """Raises ``UserError`` for a side that is longer than its table of places."""
        config = configs["transformer"]
        step = int(config["patch_size"]) * self.latent_scale(configs["vae"])
        most = int(config["pos_embed_max_size"]) * step
        if max(height, width) > most:
            raise UserError(
                f"this {self.label} takes no image of {width} x {height} pixels: a side has at "
                f"most {most}",
                where="data.resolution",
                do=f"Set {most} or less.",
            )
        return super().latent_shape(configs, height, width)

    def native_size(self, configs: Configs) -> int:
        return int(configs["transformer"]["sample_size"]) * self.latent_scale(configs["vae"])

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """CLIP's last but one layers side by side, widened with zeros to T5's, which follows."""
        more = {"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False}
        embeds, _, pooled, _ = self.encoded(parts, prompts, **more)
        return Conditioning(embeds, pooled)

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """It counts noise in thousandths."""
        return {
            "hidden_states": noisy,
            "timestep": 1000.0 * times,
            "encoder_hidden_states": text.embeds,
            "pooled_projections": text.pooled,
        }

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        found = super().blank(parts, batch, dtype)
        tokens = CLIP_TOKENS + self.most_tokens
        return replace(found, embeds=found.embeds.new_empty(batch, tokens, found.embeds.shape[2]))
