"""Z-Image and Z-Image Turbo (Tongyi-MAI 2025): one stream of text and image tokens, Qwen3 text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Components, SizeInfo
from dreambooth_core.families.flux import LATENTS
from dreambooth_core.families.hosts import HostFiles, Tensors, axes, count, flow_scheduler
from dreambooth_core.families.names.z_image import NAMES
from dreambooth_core.families.text import Conditioning
from dreambooth_core.families.transformer import TransformerFamily, per_prompt

TURBO_SHIFT = 3.0


_BLOCKS = ("layers.#", "noise_refiner.#", "context_refiner.#")


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["all_x_embedder.2-1.weight"].shape
    head = len(tensors["layers.0.attention.norm_q.weight"])
    return {
        "_class_name": "ZImageTransformer2DModel",
        "in_channels": inputs // 4,
        "dim": width,
        "n_layers": count(tensors, "layers."),
        "n_refiner_layers": count(tensors, "noise_refiner."),
        "n_heads": width // head,
        "n_kv_heads": width // head,
        "cap_feat_dim": len(tensors["cap_embedder.0.weight"]),
        "axes_dims": axes((32, 48, 48), head),
    }


def _scheduler(file: str, config: Mapping[str, Any]) -> dict[str, Any]:
    return flow_scheduler(shift=TURBO_SHIFT if "turbo" in file.lower() else 6.0)


FILES = HostFiles(
    names=NAMES,
    keys=(
        "cap_embedder.0.weight",
        "layers.0.attention.qkv.weight",
        "layers.0.adaLN_modulation.0.weight",
    ),
    without=("siglip_embedder.0.weight",),
    config=_config,
    scheduler=_scheduler,
    norms={
        f"{block}.attention.{letter}_norm": f"{block}.attention.norm_{letter}"
        for block in _BLOCKS
        for letter in "qk"
    },
    unused=("norm_final.weight",),
    ones={"norm_final.weight": "layers.0.ffn_norm1.weight"},
    texts={"text_encoder": "Qwen3 4B"},
    text_widths={"text_encoder": ("cap_feat_dim", 1)},
    latents=LATENTS,
    patch=1,
)


class ZImage(TransformerFamily):
    """Z-Image: 30 blocks and two refiners of two, 6.2 billion weights, Flux's autoencoder."""

    name: ClassVar[str] = "z_image"
    label: ClassVar[str] = "Z-Image"
    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.ZImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Qwen3Model",
    }
    files: ClassVar[HostFiles | None] = FILES
    samples_latents: ClassVar[bool] = False
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attention\.(to_q|to_v)$",
        "attention": r"\.attention\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])$",
        "all": r"(\.attention\.|\.feed_forward\.|\.adaLN_modulation\.)",
    }

    def warnings(self, parts: Components) -> list[str]:
        # Both have the same configuration but for the scheduler's shift: 3 of Turbo, 6 of the base.
        if parts.scheduler_config.get("shift") != TURBO_SHIFT:
            return []
        return [
            "this looks like Z-Image Turbo, which was distilled to draw in few steps: the longer "
            "it is trained the more of that it forgets, and images become soft. Few steps and a "
            "low learning rate help; better is to train on Z-Image and use the result on Turbo."
        ]

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        found, _ = self.text_pipeline(parts).encode_prompt(
            list(prompts),
            device=self.text_device(parts),
            do_classifier_free_guidance=False,
            max_sequence_length=self.most_tokens,
        )
        return Conditioning.joined([Conditioning(embeds[None]) for embeds in found])

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        """It counts the share of the image, and answers with the direction towards it."""
        answers = parts.denoiser(
            list(noisy.unsqueeze(2)),
            1.0 - timesteps,
            per_prompt(conditioning.embeds, conditioning.lengths),
            return_dict=False,
        )[0]
        return -torch.stack(list(answers)).squeeze(2)

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        # diffusers counts from 0 here what everybody else counts from 1: no guidance.
        scale = max(guidance - 1.0, 0.0)
        positive = self.placed(parts, self.encode(parts, prompts))
        found: dict[str, Any] = {
            "prompt_embeds": per_prompt(positive.embeds, positive.lengths),
            "guidance_scale": scale,
        }
        if scale:
            other = self.placed(parts, self.encode(parts, [negative]))
            found["negative_prompt_embeds"] = [other.embeds[0]] * len(prompts)
        return found

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        width = parts.denoiser.config.cap_feat_dim
        return Conditioning(torch.empty(batch, self.most_tokens, width, dtype=dtype, device="meta"))
