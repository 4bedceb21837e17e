"""Z-Image and Z-Image Turbo (Tongyi-MAI 2025): one stream of text and image tokens, Qwen3 text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from dreambooth_core.families.names.z_image import BLOCKS, NAMES
from dreambooth_core.families.transformer import Call, TransformerFamily

TURBO_SHIFT = 3.0


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
        for block in BLOCKS
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
    context: ClassVar[str] = "cap_feat_dim"
    guidance_from: ClassVar[float] = 1.0
    samples_latents: ClassVar[bool] = False
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attention\.(to_q|to_v)$",
        "attention": r"\.attention\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])$",
        "all": r"(\.attention\.|\.feed_forward\.|\.adaLN_modulation\.)",
    }

    distilled: ClassVar[str] = (
        "this looks like Z-Image Turbo, which was distilled to draw in few steps: the longer "
        "it is trained the more of that it forgets, and images become soft. Few steps and a "
        "low learning rate help; better is to train on Z-Image and use the result on Turbo."
    )

    def is_distilled(self, parts: Components) -> bool:
        """Both have the same configuration but for the scheduler's shift."""
        return bool(parts.scheduler_config.get("shift") == TURBO_SHIFT)

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        found, _ = self.encoded(parts, prompts, do_classifier_free_guidance=False)
        return Conditioning.joined([Conditioning(embeds[None]) for embeds in found])

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """It counts the share of the image, and answers with the direction towards it."""
        return {
            "x": list(noisy.unsqueeze(2)),
            "t": 1.0 - times,
            "cap_feats": _per_prompt(text.embeds, text.lengths),
        }

    def answered(self, answer: Any, noisy: Tensor) -> Tensor:
        return -torch.stack(list(answer)).squeeze(2)

    def given(self, parts: Components, conditioning: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": _per_prompt(conditioning.embeds, conditioning.lengths)}

    def unwanted(self, parts: Components, negative: str, count: int) -> Conditioning:
        return Conditioning(self.encode(parts, [negative]).embeds.expand(count, -1, -1))


def _per_prompt(values: Tensor, lengths: Sequence[int] | None) -> list[Tensor]:
    """Rows ``[tokens, …]`` of ``[batch, tokens, …]`` without the padding."""
    if lengths is None:
        return list(values)
    return [row[:length] for row, length in zip(values, lengths, strict=True)]
