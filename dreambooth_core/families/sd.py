"""Stable Diffusion 1 and 2: one CLIP text encoder (Rombach et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from dreambooth_core.families.base import Components, Family, encode_single
from dreambooth_core.families.text import Conditioning


class SingleEncoder(Family):
    """What the families with one text encoder share."""

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        return encode_single(parts, prompts)

    def pipeline_class(self, parts: Components) -> type[Any]:
        if parts.is_inpainting:
            from diffusers import StableDiffusionInpaintPipeline

            return StableDiffusionInpaintPipeline
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline


class StableDiffusion1(SingleEncoder):
    """SD 1.x and its inpainting models: CLIP ViT-L with quick GELU."""

    name: ClassVar[str] = "sd1"
    label: ClassVar[str] = "Stable Diffusion 1"

    def matches(self, unet_config: dict[str, Any], text_configs: Sequence[dict[str, Any]]) -> bool:
        return len(text_configs) == 1 and not is_openclip(text_configs[0])


class StableDiffusion2(SingleEncoder):
    """SD 2.x: OpenCLIP ViT-H, of which diffusers keeps the layers up to the penultimate."""

    name: ClassVar[str] = "sd2"
    label: ClassVar[str] = "Stable Diffusion 2"

    def matches(self, unet_config: dict[str, Any], text_configs: Sequence[dict[str, Any]]) -> bool:
        return len(text_configs) == 1 and is_openclip(text_configs[0])


def is_openclip(text_config: dict[str, Any]) -> bool:
    """OpenCLIP's text towers use the exact GELU, OpenAI's the quick one."""
    return str(text_config.get("hidden_act", "quick_gelu")) == "gelu"
