"""Stable Diffusion XL: two text encoders and size conditions (Podell et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.families.base import Components, Configs, SizeInfo
from dreambooth_core.families.sd import UNetFamily
from dreambooth_core.families.text import Conditioning


class StableDiffusionXL(UNetFamily):
    """SDXL: CLIP ViT-L and OpenCLIP ViT-bigG side by side, penultimate layers, no final norm."""

    name: ClassVar[str] = "sdxl"
    label: ClassVar[str] = "Stable Diffusion XL"
    pipeline: ClassVar[str] = "StableDiffusionXL"
    is_normed: ClassVar[bool] = False
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    def matches(self, configs: Configs) -> bool:
        unet = configs.get("unet", {})
        both = all(name in configs for name in self.text_encoders)
        return both and unet.get("addition_embed_type") == "text_time"

    def added_conditions(
        self, parts: Components, conditioning: Conditioning, sizes: Sequence[SizeInfo]
    ) -> dict[str, Tensor] | None:
        numbers = [[*size.original, *size.crop_top_left, *size.target] for size in sizes]
        embeds = conditioning.embeds
        time_ids = send(torch.tensor(numbers, dtype=embeds.dtype), embeds.device)
        if conditioning.pooled is None:
            raise ValueError("SDXL needs the pooled output of its second text encoder")
        return {"text_embeds": conditioning.pooled, "time_ids": time_ids}
