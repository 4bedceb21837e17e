"""Reduced Stable Diffusion models of every family, and the full ones without data.

Weights are random and made in place; no file is needed. Widths are multiples of 32, as group
normalisation wants.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch

from dreambooth_core.families.stable_diffusion import text, unet, unet_config, vae
from dreambooth_core.families.stable_diffusion.build import empty
from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler
from dreambooth_core.families.stable_diffusion.stock import stock_configs
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts

VOCABULARY = 49408
"""CLIP's whole vocabulary: the tokenizer comes with the package."""


def unet_of(
    family: str,
    channels: tuple[int, ...] = (32, 64, 64, 64),
    *,
    blocks: int = 2,
    context: int = 32,
    heads: int = 4,
    in_channels: int = 4,
    pooled: int = 32,
    deepest: int = 3,
) -> dict[str, Any]:
    """A UNet configuration in a family's manner; ``deepest``: blocks in SDXL's lowest level."""
    xl = family == "sdxl"
    depths = (0, max(1, deepest - 1), deepest) if xl else (*[1] * (len(channels) - 1), 0)
    levels = tuple(
        unet.Level(c, (d,) * blocks, (d,) * (blocks + 1))
        for c, d in zip(channels, depths, strict=xl)
    )
    plan = unet.UNetPlan(
        in_channels=in_channels,
        out_channels=4,
        levels=levels,
        middle=deepest if xl else 1,
        context=context,
        linear=family != "sd1",
        added=6 * 8 + pooled if xl else None,
    )
    counts = (heads,) * len(levels) if family == "sd1" else unet_config.heads_of_width(plan, 16)
    config = unet_config.config_from_plan(plan, counts, sample_size=8)
    unet_config.set_time_width(config, pooled)
    return config


def text_of(width: int = 32, *, layers: int = 2, heads: int = 2, act: str, projected: bool) -> Any:
    """A text encoder configuration."""
    projection = width if projected else None
    plan = text.TextPlan(layers, width, width * 2, VOCABULARY, 77, projection)
    return text.config_from_plan(plan, heads=heads, activation=act)


def reduced_configs(
    family: str, *, in_channels: int = 4, slim: bool = False
) -> dict[str, dict[str, Any]]:
    """Configurations of a model small enough to write and read in a test; ``slim``: to train in
    one, with as few blocks as the family can have."""
    few: dict[str, Any] = {"blocks": 1, "deepest": 1} if slim else {}
    scaling = vae.SCALING[family]
    autoencoder = vae.VAEPlan((32, 32, 64, 64), 1, 4, 3, 3, True)
    configs = {"vae": vae.config_from_plan(autoencoder, scaling=scaling, sample_size=64)}
    if family == "sdxl":
        configs["unet"] = unet_of(
            family, (32, 64, 64), context=96, in_channels=in_channels, pooled=64, **few
        )
        configs["text_encoder"] = text_of(act="quick_gelu", projected=False)
        configs["text_encoder_2"] = text_of(64, act="gelu", projected=True, layers=3)
        return configs
    channels = (32, 64) if slim else (32, 64, 64, 64)
    configs["unet"] = unet_of(family, channels, in_channels=in_channels, **few)
    act = "gelu" if family == "sd2" else "quick_gelu"
    configs["text_encoder"] = text_of(act=act, projected=False, layers=3)
    return configs


def random_tensors(
    name: str, config: dict[str, Any], *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random weights of a network, text encoders with their ``text_model.`` prefix."""
    drawn = _drawn(name, json.dumps(config), seed)
    return {key: tensor.clone().to(dtype) for key, tensor in drawn.items()}


@cache
def _drawn(name: str, config: str, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {key: tensor.shape for key, tensor in meta_tensors(name, json.loads(config)).items()}
    return {k: torch.randn(shape, generator=generator).mul_(0.05) for k, shape in shapes.items()}


def meta_tensors(name: str, config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The weights' names and shapes as the libraries have them, without data."""
    state = empty(name, config).state_dict()
    if name.startswith("text"):
        state = {k if k.startswith("text_") else f"text_model.{k}": t for k, t in state.items()}
    return {key: tensor for key, tensor in state.items() if not key.endswith("position_ids")}


def reduced_parts(
    family: str,
    *,
    in_channels: int = 4,
    prediction_type: str = "epsilon",
    zero_terminal_snr: bool = False,
    dtype: torch.dtype = torch.float32,
    slim: bool = False,
) -> ModelParts:
    """A whole reduced model with random weights; ``slim``: see :func:`reduced_configs`."""
    components = {
        name: Component(config, random_tensors(name, config, seed=i, dtype=dtype))
        for i, (name, config) in enumerate(
            sorted(reduced_configs(family, in_channels=in_channels, slim=slim).items())
        )
    }
    scheduler = default_scheduler(family, prediction_type, zero_terminal_snr=zero_terminal_snr)
    return ModelParts(family, components, scheduler)


def full_parts(
    family: str, *, in_channels: int = 4, prediction_type: str = "epsilon"
) -> ModelParts:
    """A full-size model on the meta device: names and shapes, no data."""
    components = {
        name: Component(config, meta_tensors(name, config))
        for name, config in stock_configs(family, in_channels=in_channels).items()
    }
    return ModelParts(family, components, default_scheduler(family, prediction_type))
