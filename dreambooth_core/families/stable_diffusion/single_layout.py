"""Where each network lies in a single file, and which family a file is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.parts import OPENCLIP, TEXT_ENCODERS
from dreambooth_core.families.stable_diffusion.unet import Shapes
from dreambooth_core.formats.checkpoints.parts import ModelParts

T = TypeVar("T")

UNET = "model.diffusion_model."
VAE = "first_stage_model."
EMA = "model_ema."

MARKERS = ("v_pred", "ztsnr")


def under(tensors: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries below a prefix, without it."""
    cut = len(prefix)
    return {name[cut:]: value for name, value in tensors.items() if name.startswith(prefix)}


def prefixes(family: str) -> dict[str, str]:
    """The single file's prefix of every network of a family."""
    return {"unet": UNET, "vae": VAE, **TEXT_ENCODERS[family]}


def family_of(shapes: Shapes) -> str | None:
    """The family of a checkpoint, by the width of the text that its UNet takes and its names.

    Returns ``None`` where this is no Stable Diffusion UNet of the families handled here.
    """
    if f"{UNET}input_blocks.0.0.weight" not in shapes or f"{UNET}out.2.weight" not in shapes:
        return None
    inside = under(shapes, UNET)
    if any("time_stack" in name or "time_mixer" in name for name in inside):
        return None  # Stable Video Diffusion
    added = "label_emb.0.0.weight" in inside
    if any(name.startswith("conditioner.embedders.1.model.") for name in shapes):
        return "sdxl"
    if any(name.startswith("conditioner.embedders.0.model.") for name in shapes):
        return "sdxl_refiner" if added else "sd2"
    if any(name.startswith("cond_stage_model.model.") for name in shapes):
        return None if added else "sd2"  # unCLIP has both
    if any(name.startswith("cond_stage_model.transformer.") for name in shapes):
        return "sd1"
    if added:
        return {2048: "sdxl", 1280: "sdxl_refiner"}.get(_context(inside))
    return {768: "sd1", 1024: "sd2"}.get(_context(inside))


def normalised(tensors: Mapping[str, T], family: str) -> dict[str, T]:
    """Names as today's files have them.

    Text encoders of some files lack ``text_model.``, and generative-models' SD2 files keep their
    text encoder where SDXL does.
    """
    found: dict[str, T] = {}
    plain = [p for name, p in TEXT_ENCODERS[family].items() if (family, name) not in OPENCLIP]
    for name, value in tensors.items():
        if family == "sd2" and name.startswith("conditioner.embedders.0.model."):
            name = "cond_stage_model." + name.removeprefix("conditioner.embedders.0.")
        for prefix in plain:
            rest = name.removeprefix(prefix)
            if name.startswith(prefix) and rest.startswith(("embeddings.", "encoder.", "final_")):
                name = f"{prefix}text_model.{rest}"
        found[name] = value
    return found


EXTRAS = ("text", "all", "none")
"""``text``: the text encoder's unused weights; ``all``: also moving averages, schedules and
whatever else there was; ``none``."""


def kept(parts: ModelParts, extras: str) -> dict[str, torch.Tensor]:
    """The unused tensors to keep, in the single file's names.

    Raises:
        UserError: ``extras`` is not one of :data:`EXTRAS`.
    """
    if extras not in EXTRAS:
        raise UserError(f"extras is {extras!r}", do=f"Choose one of {', '.join(EXTRAS)}")
    if extras == "none":
        return {}
    if extras == "all":
        return parts.extras
    prefixes = tuple(TEXT_ENCODERS[parts.family].values())
    return {k: v for k, v in parts.extras.items() if k.startswith(prefixes)}


def ema_name(name: str) -> str:
    """The name of a UNet weight's moving average: latent diffusion drops the dots.

    ``name`` is the weight's name without the UNet's prefix.
    """
    return EMA + f"diffusion_model.{name}".replace(".", "")


def _context(inside: Mapping[str, Sequence[int]]) -> int:
    return next((int(s[1]) for k, s in inside.items() if k.endswith("attn2.to_k.weight")), 0)
