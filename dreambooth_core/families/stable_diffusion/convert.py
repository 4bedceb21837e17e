"""Converts a checkpoint: reads it, changes what was asked, writes it in the other layout."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.check import check_values
from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.parts import check_complete, is_inpainting
from dreambooth_core.families.stable_diffusion.prediction import spelled
from dreambooth_core.families.stable_diffusion.read import read_model, read_vae
from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler, with_scheduler
from dreambooth_core.families.stable_diffusion.single_layout import kept
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.families.stable_diffusion.vae import SCALING
from dreambooth_core.formats.checkpoints.parts import ModelParts

SINGLE = (".safetensors", ".ckpt")
LARGEST = 16384
"""Pixels along one side that a model can be said to be made for."""


@dataclass
class Request:
    """What a conversion is to do. Every field but the paths may be left as it is."""

    source: Path
    target: Path
    """Ends in ``.safetensors`` or ``.ckpt`` for a single file; anything else is a folder."""
    config_file: Path | None = None
    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    scheduler: str | None = None
    dtype: torch.dtype | None = None
    ema: bool = False
    vae: Path | None = None
    variant: str | None = None
    extras: str = "text"
    yaml: str = "auto"
    resolution: int | None = None
    upcast_attention: bool = False
    """Compute the UNet's attention in fp32: that of SD 2.1 overflows in fp16."""
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """What a conversion read and wrote."""

    family: str
    prediction_type: str
    inpainting: bool
    zero_terminal_snr: bool
    parameters: dict[str, int]
    files: list[Path]
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**vars(self), "files": [str(file) for file in self.files]}


def convert_checkpoint(request: Request) -> Report:
    """Converts a checkpoint.

    Raises:
        UserError: the source cannot be read, the request contradicts itself, or the model has no
            form in the other layout.
        SaveFailed: the target could not be written.
    """
    refuse_overlap(request.source, request.target)
    parts = read_model(
        request.source,
        config_file=request.config_file,
        prediction_type=request.prediction_type,
        ema=request.ema,
        variant=request.variant,
        need_vae=request.vae is None,
        values=False,
    )
    apply(parts, request)
    check_values(parts, request.source, request.dtype, kept(parts, request.extras))
    warnings = list(parts.warnings)
    if request.target.suffix in SINGLE:
        written = write_single_file(
            parts,
            request.target,
            dtype=request.dtype,
            extras=request.extras,
            yaml=request.yaml,
            metadata=request.metadata,
        )
        files, warnings = written.files, warnings + written.warnings
    else:
        parts.metadata |= request.metadata
        files = write_folder(parts, request.target, dtype=request.dtype, extras=request.extras)
    return Report(
        family=parts.family,
        prediction_type=parts.prediction_type,
        inpainting=is_inpainting(parts),
        zero_terminal_snr=parts.zero_terminal_snr,
        parameters={
            name: sum(t.numel() for t in part.tensors.values())
            for name, part in parts.components.items()
        },
        files=files,
        warnings=warnings,
    )


def refuse_overlap(source: Path, target: Path) -> None:
    """Refuses to write a model over, into or around the one that is read.

    Raises:
        UserError: says which.
    """
    # Not Path.resolve: that raises for a link to itself.
    here, there = (Path(os.path.realpath(path)) for path in (source, target))
    single = target.suffix in SINGLE
    if here == there:
        what = "the target is the source"
    # A single file may lie in a diffusers folder's root, where nothing is read: tutorials do so.
    elif here in there.parents and source.is_dir() and not (single and there.parent == here):
        what = "the target lies in the source"
    elif there in here.parents and not single:
        what = "the source lies in the target"
    else:
        return
    raise UserError(what, where=target, do="Choose another name to write to")


def apply(parts: ModelParts, request: Request) -> None:
    """Makes the changes that a request asks for, in place. Raises ``UserError``."""
    if request.vae is not None:
        old = parts.components.get("vae")
        scaling = old.config.get("scaling_factor") if old else None
        new = read_vae(request.vae, scaling=scaling or SCALING[parts.family])
        latent = parts.components["unet"].config["out_channels"]
        if new.config.get("latent_channels", 4) != latent:
            raise UserError(
                f"this VAE has {new.config.get('latent_channels')} latent channels, "
                f"the UNet {latent}",
                where=request.vae,
            )
        parts.components["vae"] = new
    check_complete(parts, request.source)
    if request.zero_terminal_snr:
        kind = spelled(request.prediction_type or parts.prediction_type)
        parts.scheduler = {
            **default_scheduler(parts.family, kind, zero_terminal_snr=True),
            **{k: v for k, v in parts.scheduler.items() if k.startswith("beta_")},
        }
    if request.scheduler:
        parts.scheduler = with_scheduler(parts.scheduler, request.scheduler)
    if request.upcast_attention:
        parts.components["unet"].config["upcast_attention"] = True
    if request.resolution is not None:
        factor = 2 ** (len(parts.components["vae"].config["block_out_channels"]) - 1)
        if request.resolution % factor or not factor <= request.resolution <= LARGEST:
            raise UserError(
                f"the resolution {request.resolution} is not a multiple of {factor} up to {LARGEST}"
            )
        parts.components["unet"].config["sample_size"] = request.resolution // factor
