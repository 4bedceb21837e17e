"""A base of Stable Diffusion's kind as it is stored, in one file or a folder."""

from __future__ import annotations

import os
from pathlib import Path

from dreambooth_core.errors import UserError
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.checkpoints.read import read_model


def read_stored(options: BaseOptions, path: Path, *, values: bool = True) -> ModelParts:
    """The base as it is stored, with the autoencoder that the options ask for.

    Args:
        options: the ``base`` section.
        path: where it lies.
        values: also look at every number, for NaN and infinity.

    Raises:
        UserError: as :func:`dreambooth_core.formats.checkpoints.read.read_model`.
    """
    stored = read_model(
        path,
        prediction_type=None if options.prediction_type == "auto" else options.prediction_type,
        variant=options.variant,
        need_vae=options.vae is None,
        values=values,
    )
    if options.vae:
        stored.components["vae"] = read_vae(options.vae)
    return stored


def read_vae(where: str) -> Component:
    """An autoencoder of its own: a diffusers folder (the VAE's or a whole model's) or a file.

    Raises:
        UserError: there is none at ``where``.
    """
    from dreambooth_core.formats.checkpoints.vae_read import read_vae as read

    path = Path(os.path.expanduser(where))
    if not os.path.exists(path):
        raise UserError("there is no such file or folder", where=f"base.vae: {where}")
    return read(path)
