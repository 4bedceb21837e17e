"""The families: one record each, ours and those of other packages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from dreambooth_core.errors import Unsupported
from dreambooth_core.families.anima import Anima
from dreambooth_core.families.base import Family
from dreambooth_core.families.components import Configs
from dreambooth_core.families.flux import Chroma, Flux
from dreambooth_core.families.flux2 import Flux2Dev, Flux2Klein
from dreambooth_core.families.hidream import HiDream
from dreambooth_core.families.host_files.record import HostFiles
from dreambooth_core.families.ideogram4 import Ideogram4
from dreambooth_core.families.krea2 import Krea2
from dreambooth_core.families.lumina2 import Lumina2
from dreambooth_core.families.qwen_image import QwenImage
from dreambooth_core.families.recognition.detect import Identity
from dreambooth_core.families.sana import Sana
from dreambooth_core.families.sd3 import StableDiffusion3
from dreambooth_core.families.stable_diffusion.family import (
    StableDiffusion1,
    StableDiffusion2,
    StableDiffusionXL,
)
from dreambooth_core.families.z_image import ZImage
from dreambooth_core.formats.checkpoints.pieces import Piece
from dreambooth_core.registry import Registry

FAMILIES: Registry[Family] = Registry("family", where="base.model", group="dreambooth.families")
FAMILIES.add(
    StableDiffusionXL(),
    StableDiffusion2(),
    StableDiffusion1(),
    ZImage(),
    Flux2Klein(),
    Flux2Dev(),
    Flux(),
    Chroma(),
    QwenImage(),
    StableDiffusion3(),
    Krea2(),
    Lumina2(),
    Ideogram4(),
    HiDream(),
    Sana(),
    Anima(),
)


def family_of(configs: Configs, where: str) -> Family:
    """The family of a model whose networks have these configurations.

    Raises:
        Unsupported: no family fits; says what the model looks like.
    """
    for family in FAMILIES.working():
        if family.matches(configs):
            return family
    made_of = ", ".join(
        f"{name} ({config['_class_name']})" if "_class_name" in config else name
        for name, config in configs.items()
    )
    raise Unsupported(
        f"no known family: a model made of {made_of}",
        where=where,
        do=f"Known: {', '.join(family.label for family in FAMILIES.working())}.",
    )


def denoiser_among(pieces: Iterable[Piece]) -> tuple[Family, HostFiles, Piece] | None:
    """The first denoiser of a known family among the networks in a file of the hosts."""
    for piece in pieces:
        for family in FAMILIES.working():
            if family.files is not None and family.files.fits(piece.entries):
                return family, family.files, piece
    return None


def named(identity: Identity) -> Identity:
    """What a base is, with its family's name where only diffusers' class was known."""
    family = family_of_pipeline(str(identity.details.get("pipeline", "")))
    if family is None:
        return identity
    label = f"a diffusers folder of {family.label}"
    return replace(identity, family=family.name, label=label)


def family_of_pipeline(pipeline: str) -> Family | None:
    """The family whose folders name this class of diffusers, if any does."""
    return next((f for f in FAMILIES.working() if pipeline in f.pipelines), None)
