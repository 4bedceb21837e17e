"""Autoencoders as the hosts keep them: LDM's names for images, Wan's for video."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dreambooth_core.families.stable_diffusion import vae
from dreambooth_core.formats.checkpoints.pairs import to_diffusers
from dreambooth_core.formats.storage import Stored

NORM_GROUPS = 32
"""Of the group norms, which no shape tells."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class VaeKind:
    """One kind of autoencoder."""

    label: str
    classes: tuple[str, ...]
    """Classes of diffusers that it is read as."""
    keys: tuple[str, ...]
    first: str
    """The decoder's first weight, whose inputs are the latents' channels."""
    config: Callable[[Tensors], dict[str, Any]]
    """From its tensors in the file's names (their shapes)."""
    rename: Callable[[Tensors, Path], dict[str, Tensor]]
    """Its weights in diffusers' names."""

    def channels(self, entries: Mapping[str, Stored]) -> int:
        """Of the latents; 0 where the file does not tell."""
        shape = entries[self.first].shape if self.first in entries else ()
        return shape[1] if len(shape) > 1 else 0


def _ldm(tensors: Tensors) -> dict[str, Tensor]:
    """Flux.2's makers keep the outermost convolutions within the encoder and the decoder."""
    inner = re.compile(r"(en|de)coder\.((post_)?quant_conv)")
    return {inner.sub(r"\2", name): tensor for name, tensor in tensors.items()}


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _image_config(tensors: Tensors) -> dict[str, Any]:
    plan = vae.plan_from_shapes(_shapes(_ldm(tensors)))
    found = vae.config_from_plan(plan, scaling=1.0, sample_size=1024)
    for key in ("scaling_factor", "force_upcast"):
        found.pop(key)
    return {**found, "norm_num_groups": NORM_GROUPS}


def _image_names(tensors: Tensors, where: Path) -> dict[str, Tensor]:
    plain = _ldm(tensors)
    pairs = vae.pairs_of(vae.plan_from_shapes(_shapes(plain)))
    own = {name: tensor for name, tensor in plain.items() if name.startswith("bn.")}
    return {**to_diffusers(pairs, plain, where), **own}


_VIDEO_NAMES = (
    (re.compile(r"^conv1\."), "quant_conv."),
    (re.compile(r"^conv2\."), "post_quant_conv."),
    (re.compile(r"coder\.conv1\."), "coder.conv_in."),
    (re.compile(r"\.head\.0\."), ".norm_out."),
    (re.compile(r"\.head\.2\."), ".conv_out."),
    (re.compile(r"\.middle\.1\."), ".mid_block.attentions.0."),
    (re.compile(r"\.middle\.0\."), ".mid_block.resnets.0."),
    (re.compile(r"\.middle\.2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.downsamples\."), ".down_blocks."),
    (re.compile(r"\.residual\.0\."), ".norm1."),
    (re.compile(r"\.residual\.2\."), ".conv1."),
    (re.compile(r"\.residual\.3\."), ".norm2."),
    (re.compile(r"\.residual\.6\."), ".conv2."),
    (re.compile(r"\.shortcut\."), ".conv_shortcut."),
)
_UP = re.compile(r"\.upsamples\.(\d+)\.")
_DOWN = re.compile(r"encoder\.downsamples\.(\d+)\.")


def _video_blocks(names: Iterable[str]) -> int:
    """Residual blocks before the first halving of the image; the decoder has one more a level."""
    halving = [
        int(match[1]) for name in names if ".resample." in name and (match := _DOWN.match(name))
    ]
    return min(halving)


def _video_names(tensors: Tensors, where: Path) -> dict[str, Tensor]:
    level = _video_blocks(tensors) + 2  # of the decoder: blocks, and what doubles the image
    found = {}
    for name, tensor in tensors.items():
        for pattern, theirs in _VIDEO_NAMES:
            name = pattern.sub(theirs, name)
        match = _UP.search(name)
        if match is not None:
            at, within = divmod(int(match[1]), level)
            what = "upsamplers.0" if within == level - 1 else f"resnets.{within}"
            name = f"{name[: match.start()]}.up_blocks.{at}.{what}.{name[match.end() :]}"
        found[name] = tensor
    return found


def _video_config(tensors: Tensors) -> dict[str, Any]:
    base = len(tensors["encoder.conv1.weight"])
    blocks = _video_blocks(tensors)
    levels, halved = [], []
    at = 0
    while (name := f"encoder.downsamples.{at}.residual.2.weight") in tensors:
        levels.append(len(tensors[name]) // base)
        at += blocks
        if f"encoder.downsamples.{at}.resample.1.weight" in tensors:
            halved.append(f"encoder.downsamples.{at}.time_conv.weight" in tensors)
        at += 1
    return {
        "base_dim": base,
        "z_dim": tensors["decoder.conv1.weight"].shape[1],
        "dim_mult": levels,
        "num_res_blocks": blocks,
        "temperal_downsample": halved,
        "attn_scales": [],
    }


VAE_KINDS: tuple[VaeKind, ...] = (
    VaeKind(
        "images",
        ("AutoencoderKL", "AutoencoderKLFlux2"),
        ("decoder.conv_in.weight", "encoder.conv_in.weight"),
        "decoder.conv_in.weight",
        _image_config,
        _image_names,
    ),
    VaeKind(
        "video",
        ("AutoencoderKLQwenImage",),
        ("decoder.middle.0.residual.0.gamma", "encoder.conv1.weight"),
        "decoder.conv1.weight",
        _video_config,
        _video_names,
    ),
)


def vae_kind(names: Iterable[str]) -> VaeKind | None:
    """The kind of autoencoder that has these names."""
    there = set(names)
    return next((kind for kind in VAE_KINDS if there.issuperset(kind.keys)), None)


def vae_kind_of_class(name: str) -> VaeKind:
    """The kind that is read as this class, ``library.Class``."""
    return next(kind for kind in VAE_KINDS if name.rpartition(".")[2] in kind.classes)
