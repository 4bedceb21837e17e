"""The KL autoencoder: configuration, shapes and pairs of names.

Single file: ``encoder.down.0 …`` and ``decoder.up.0 …``, both counted from the finest level;
diffusers counts the decoder's blocks from the coarsest. The attention in the middle is made of
1×1 convolutions there and of linear layers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dreambooth_core.errors import Unsupported
from dreambooth_core.families.stable_diffusion.unet import Shapes, dimension
from dreambooth_core.formats.checkpoints.pairs import Pair, module, modules

SCALING = {"sd1": 0.18215, "sd2": 0.18215, "sdxl": 0.13025, "sdxl_refiner": 0.13025}
"""What latents are multiplied with before they go to the UNet."""

_OLD_ATTENTION = (
    (".query.", ".to_q."),
    (".key.", ".to_k."),
    (".value.", ".to_v."),
    (".proj_attn.", ".to_out.0."),
)


@dataclass(frozen=True)
class VAEPlan:
    """Everything about an autoencoder that its weights' names and shapes depend on."""

    channels: tuple[int, ...]
    blocks: int
    """Resblocks per level of the encoder; the decoder has one more."""
    latent: int
    in_channels: int
    out_channels: int
    quant: bool
    """Whether a 1×1 convolution stands on either side of the latents (all of SD's have it)."""


def plan_from_config(config: Mapping[str, Any]) -> VAEPlan:
    """The plan of a diffusers ``AutoencoderKL`` configuration.

    Raises:
        Unsupported: another kind of autoencoder.
    """
    kinds = {*config["down_block_types"], *config["up_block_types"]}
    foreign = kinds - {"DownEncoderBlock2D", "UpDecoderBlock2D"}
    if foreign or not config.get("mid_block_add_attention", True):
        what = min(foreign) if foreign else "no attention in the middle"
        raise Unsupported(f"an autoencoder with {what} has no single-file layout")
    return VAEPlan(
        channels=tuple(config["block_out_channels"]),
        blocks=int(config.get("layers_per_block", 1)),
        latent=int(config.get("latent_channels", 4)),
        in_channels=int(config.get("in_channels", 3)),
        out_channels=int(config.get("out_channels", 3)),
        quant=bool(config.get("use_quant_conv", True)),
    )


def plan_from_shapes(shapes: Shapes) -> VAEPlan:
    """The plan of an autoencoder in the single file's names, without its prefix.

    Raises:
        UserError: the names are not those of a KL autoencoder.
    """
    if any(name.startswith("taesd_") for name in shapes):
        raise Unsupported(
            "the autoencoder is a tiny one (TAESD), made for previews; training needs a whole VAE",
            do="Choose the model with its own VAE, or a VAE in a file of its own beside it.",
        )
    if any(".attn." in name and ".down." in name for name in shapes):
        raise Unsupported("an autoencoder with attention outside its middle")
    return _plan(shapes, "decoder.up.{}.block.{}.conv1.weight")


def _plan(shapes: Shapes, block: str) -> VAEPlan:
    """``block``: the name of a resblock's weight, by level and number."""
    # The decoder has one block more at each level: the encoder of a small one may have none.
    channels: list[int] = []
    while (name := block.format(len(channels), 0)) in shapes:
        channels.append(dimension(shapes, name, 0))
    dimension(shapes, block.format(0, 0), 0)
    blocks = 0
    while block.format(0, blocks + 1) in shapes:
        blocks += 1
    return VAEPlan(
        channels=tuple(channels),
        blocks=blocks,
        latent=dimension(shapes, "decoder.conv_in.weight", 1),
        in_channels=dimension(shapes, "encoder.conv_in.weight", 1),
        out_channels=dimension(shapes, "decoder.conv_out.weight", 0),
        quant="quant_conv.weight" in shapes,
    )


def config_from_plan(plan: VAEPlan, *, scaling: float, sample_size: int) -> dict[str, Any]:
    """An ``AutoencoderKL`` configuration. ``sample_size`` is the edge of an image in pixels."""
    count = len(plan.channels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "block_out_channels": list(plan.channels),
        "layers_per_block": plan.blocks,
        "act_fn": "silu",
        "latent_channels": plan.latent,
        "norm_num_groups": 32,
        "sample_size": sample_size,
        "scaling_factor": scaling,
        "force_upcast": scaling == SCALING["sdxl"],
        "use_quant_conv": plan.quant,
        "use_post_quant_conv": plan.quant,
    }


def pairs_of(plan: VAEPlan) -> list[Pair]:
    """Every weight of the autoencoder: single file (without prefix) and diffusers."""
    pairs: list[Pair] = []
    if plan.quant:
        pairs += module("quant_conv", "quant_conv") + module("post_quant_conv", "post_quant_conv")
    for half in ("encoder", "decoder"):
        outer = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
        pairs += modules(half, half, outer)
        pairs += _resblock(f"{half}.mid.block_1", f"{half}.mid_block.resnets.0", skip=False)
        pairs += _attention(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0")
        pairs += _resblock(f"{half}.mid.block_2", f"{half}.mid_block.resnets.1", skip=False)
        pairs += _levels(plan, half)
    return pairs


def todays_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Diffusers weights as they are named and shaped now.

    Folders from before 2023 call the attention's layers ``query``, ``key``, ``value`` and
    ``proj_attn``; in some they are still 1×1 convolutions.
    """
    found = {}
    for name, tensor in tensors.items():
        if ".attentions." in name:
            for old, new in _OLD_ATTENTION:
                name = name.replace(old, new)
            if tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
                tensor = tensor.reshape(tensor.shape[:2])
        found[name] = tensor
    return found


def plan_from_diffusers_shapes(shapes: Shapes) -> VAEPlan:
    """The plan of an autoencoder in diffusers' names.

    Raises:
        UserError: the names are not those of a KL autoencoder.
    """
    plan = _plan(shapes, "decoder.up_blocks.{}.resnets.{}.conv1.weight")
    return replace(plan, channels=plan.channels[::-1])  # the coarsest level comes first there


def _levels(plan: VAEPlan, half: str) -> list[Pair]:
    """The encoder's levels, from the finest on, or the decoder's, from the coarsest on."""
    pairs: list[Pair] = []
    down, last = half == "encoder", len(plan.channels) - 1
    way = "down" if down else "up"
    levels = plan.channels if down else plan.channels[::-1]
    width = levels[0]
    for i, channels in enumerate(levels):
        here, there = f"{half}.{way}.{i if down else last - i}", f"{half}.{way}_blocks.{i}"
        for j in range(plan.blocks if down else plan.blocks + 1):
            skip = width != channels
            pairs += _resblock(f"{here}.block.{j}", f"{there}.resnets.{j}", skip=skip)
            width = channels
        if i < last:
            pairs += module(f"{here}.{way}sample.conv", f"{there}.{way}samplers.0.conv")
    return pairs


def _resblock(single: str, diffusers: str, *, skip: bool) -> list[Pair]:
    names = ("norm1", "conv1", "norm2", "conv2")
    pairs = modules(single, diffusers, dict(zip(names, names, strict=True)))
    if skip:
        pairs += module(f"{single}.nin_shortcut", f"{diffusers}.conv_shortcut")
    return pairs


def _attention(single: str, diffusers: str) -> list[Pair]:
    pairs = module(f"{single}.norm", f"{diffusers}.group_norm")
    for name, other in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out.0")):
        pairs += module(f"{single}.{name}", f"{diffusers}.{other}", kind="conv")
    return pairs
