"""The sizes of the full models: SD1.5, SD2.1, SDXL and its refiner."""

from __future__ import annotations

from typing import Any

from dreambooth_core.families.stable_diffusion import text, unet, unet_config, vae
from dreambooth_core.families.stable_diffusion.parts import TEXT_ENCODERS
from dreambooth_core.formats.checkpoints.parts import ModelParts

_UNETS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, int, int | None]] = {
    "sd1": ((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 768, None),
    "sd2": ((320, 640, 1280, 1280), (1, 1, 1, 0), 1, 1024, None),
    "sdxl": ((320, 640, 1280), (0, 2, 10), 10, 2048, 2816),
    "sdxl_refiner": ((384, 768, 1536, 1536), (0, 4, 4, 0), 4, 1280, 2560),
}
"""Channels, transformer depths, the middle's depth, text width and width of added conditions."""

_CLIP_L = text.TextPlan(12, 768, 3072, 49408, 77, None)
_CLIP_H = text.TextPlan(23, 1024, 4096, 49408, 77, None)
_CLIP_G = text.TextPlan(32, 1280, 5120, 49408, 77, 1280)
_TEXTS = {
    ("sd1", "text_encoder"): (_CLIP_L, "quick_gelu"),
    ("sd2", "text_encoder"): (_CLIP_H, "gelu"),
    ("sdxl", "text_encoder"): (_CLIP_L, "quick_gelu"),
    ("sdxl", "text_encoder_2"): (_CLIP_G, "gelu"),
    ("sdxl_refiner", "text_encoder_2"): (_CLIP_G, "gelu"),
}
_VAE = vae.VAEPlan((128, 256, 512, 512), 2, 4, 3, 3, True)


def stock_configs(family: str, *, in_channels: int = 4) -> dict[str, dict[str, Any]]:
    """The configuration of every network of a full-size model.

    Args:
        family: ``sd1``, ``sd2``, ``sdxl`` or ``sdxl_refiner``.
        in_channels: 4, or 9 for inpainting.
    """
    plan = _unet_plan(family, in_channels)
    heads = unet_config.default_heads(plan, family)
    xl = family.startswith("sdxl")
    scaling = vae.SCALING[family]
    configs = {
        "unet": unet_config.config_from_plan(plan, heads, sample_size=128 if xl else 64),
        "vae": vae.config_from_plan(_VAE, scaling=scaling, sample_size=1024 if xl else 512),
    }
    for name in TEXT_ENCODERS[family]:
        size, activation = _TEXTS[family, name]
        configs[name] = text.config_from_plan(
            size, heads=text.default_heads(size.width), activation=activation
        )
    return configs


def is_stock(parts: ModelParts) -> bool:
    """Whether every network has the size of its family's full model, inpainting or not."""
    config = parts.components["unet"].config
    plan = unet.plan_from_config(config)
    return (
        plan == _unet_plan(parts.family, plan.in_channels)
        and unet_config.heads_from_config(config) == unet_config.default_heads(plan, parts.family)
        and vae.plan_from_config(parts.components["vae"].config) == _VAE
        and all(is_stock_text(parts, name) for name in TEXT_ENCODERS[parts.family])
    )


def is_stock_text(parts: ModelParts, name: str) -> bool:
    """Whether a text encoder has its family's full size."""
    plan = text.plan_from_config(parts.components[name].config, projected=name == "text_encoder_2")
    return plan == _TEXTS[parts.family, name][0]


def _unet_plan(family: str, in_channels: int) -> unet.UNetPlan:
    channels, depths, middle, context, added = _UNETS[family]
    return unet.UNetPlan(
        in_channels=in_channels,
        out_channels=4,
        levels=tuple(
            unet.Level(c, (d,) * 2, (d,) * 3) for c, d in zip(channels, depths, strict=True)
        ),
        middle=middle,
        context=context,
        linear=family != "sd1",
        added=added,
    )
