"""Qwen-Image (Alibaba 2025): Qwen2.5-VL reads the prompt, an autoencoder of video the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components, Configs
from dreambooth_core.families.host_files.record import (
    HostFiles,
    Tensors,
    axes,
    count,
    flow_scheduler,
)
from dreambooth_core.families.names.qwen_image import NAMES
from dreambooth_core.families.packing import packed, unpacked
from dreambooth_core.families.transformer import JOINT_ATTENTION, Call, TransformerFamily
from dreambooth_core.objective.shift import FlowDefaults, linear_mu


class VideoAutoencoder(TransformerFamily):
    """What families share whose autoencoder is Qwen-Image's: images are videos of one frame, and
    each channel of their latents has a mean and a deviation of its own."""

    def latent_scale(self, vae: Mapping[str, Any]) -> int:
        return int(2 ** len(vae["temperal_downsample"]))

    def vae_channels(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        return int(vae["base_dim"]), 2 * int(vae["base_dim"])

    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, ...]:
        scale = self.latent_scale(configs["vae"])
        return (int(configs["vae"]["z_dim"]), height // scale, width // scale)

    def encode_pixels(self, parts: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = super().encode_pixels(parts, pixels.unsqueeze(2))
        return mean.squeeze(2), deviation.squeeze(2)

    def scaled(self, parts: Components, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(parts, latents)
        return (latents - mean) / deviation

    def unscaled(self, parts: Components, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(parts, latents)
        return latents * deviation + mean

    def decode_pixels(self, parts: Components, latents: Tensor) -> Tensor:
        return super().decode_pixels(parts, latents.unsqueeze(2)).squeeze(2)

    def latents_of(self, parts: Components, made: Tensor, height: int, width: int) -> Tensor:
        return unpacked(made, *self.latent_shape(parts.configs, height, width)[1:])


def _statistics(parts: Components, latents: Tensor) -> tuple[Tensor, Tensor]:
    config = parts.vae.config
    both = torch.tensor([config.latents_mean, config.latents_std], dtype=latents.dtype)
    mean, deviation = send(both.reshape(2, -1, 1, 1), latents.device)
    return mean, deviation


AXES = (16, 56, 56)
"""Rotary axes of a head of 128."""


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["img_in.weight"].shape
    head = len(tensors["transformer_blocks.0.attn.norm_q.weight"])
    return {
        "_class_name": "QwenImageTransformer2DModel",
        "in_channels": inputs,
        "out_channels": len(tensors["proj_out.weight"]) // 4,
        "num_layers": count(tensors, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": tensors["txt_in.weight"].shape[1],
        "axes_dims_rope": axes(AXES, head),
    }


FILES = HostFiles(
    names=NAMES,
    keys=("transformer_blocks.0.attn.norm_added_k.weight", "txt_norm.weight", "img_in.weight"),
    without=("time_text_embed.addition_t_embedding.weight",),  # Qwen-Image-Layered
    config=_config,
    scheduler=lambda file, config: flow_scheduler(
        use_dynamic_shifting=True,
        base_shift=0.5,
        max_shift=0.9,
        base_image_seq_len=256,
        max_image_seq_len=8192,
        shift_terminal=0.02,
    ),
    texts={"text_encoder": "Qwen2.5-VL 7B"},
    text_widths={"text_encoder": ("joint_attention_dim", 1)},
)


class QwenImage(VideoAutoencoder):
    """Qwen-Image: 60 blocks of two streams, 20 billion weights."""

    name: ClassVar[str] = "qwen_image"
    label: ClassVar[str] = "Qwen-Image"
    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.QwenImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKLQwenImage",
        "text_encoder": "transformers.Qwen2_5_VLForConditionalGeneration",
    }
    files: ClassVar[HostFiles | None] = FILES
    # diffusers' script trains uniformly: the scheduler shifts by size, and only when sampling.
    flow: ClassVar[FlowDefaults] = FlowDefaults(resolution_mu=linear_mu(0.5, 0.9, 256, 8192))
    native: ClassVar[int] = 1328
    most_tokens: ClassVar[int] = 1024
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn\.(to_q|to_v)$",
        "attention": rf"\.attn\.({JOINT_ATTENTION})$",
        "transformer": rf"\.(attn\.({JOINT_ATTENTION})|(img|txt)_mlp\.net\.(0\.proj|2))$",
        "all": r"\.(attn|img_mlp|txt_mlp|img_mod|txt_mod)\.",
    }

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """The last layer without the template's first 34 tokens; as many tokens as a prompt has."""
        return Conditioning.joined(
            [Conditioning(self.encoded(parts, [prompt])[0]) for prompt in prompts]
        )

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        batch, _, height, width = noisy.shape
        return {
            "hidden_states": packed(noisy),
            "timestep": times,
            "encoder_hidden_states": text.embeds,
            "encoder_hidden_states_mask": _mask(text),
            "img_shapes": [[(1, height // 2, width // 2)]] * batch,
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        return unpacked(answer, *noisy.shape[-2:])

    def given(self, parts: Components, conditioning: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": conditioning.embeds, "prompt_embeds_mask": _mask(conditioning)}

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        found = super().sampling_arguments(parts, prompts, negative, guidance)
        return {**found, "true_cfg_scale": found.pop("guidance_scale")}


def _mask(conditioning: Conditioning) -> Tensor | None:
    """1 where a token counts, ``[batch, tokens]``; None where all do, as in the pipeline."""
    return None if conditioning.lengths is None else conditioning.counted().long()
