"""Reads a model, or an autoencoder alone, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.families.recognition import detect
from dreambooth_core.families.stable_diffusion import single_layout, vae
from dreambooth_core.families.stable_diffusion.check import (
    check_component,
    check_finite,
    check_model,
    check_values,
)
from dreambooth_core.families.stable_diffusion.config_rules import check_config
from dreambooth_core.families.stable_diffusion.folder import read_folder
from dreambooth_core.families.stable_diffusion.single_read import load_tensors, read_single_file
from dreambooth_core.formats.checkpoints import folder_layout
from dreambooth_core.formats.checkpoints.pairs import to_diffusers
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.folders import is_folder


def read_model(
    path: str | Path,
    *,
    config_file: str | Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    variant: str | None = None,
    need_vae: bool = True,
    values: bool = True,
    dtype: torch.dtype | None = None,
) -> ModelParts:
    """Reads a single file or a diffusers folder, and refuses one that is not whole.

    Args:
        config_file: see :func:`read_single_file`; ``prediction_type``, ``ema`` and ``need_vae``
            likewise.
        variant: see :func:`read_folder`.
        values: also look at every number: none may be NaN or infinite.
        dtype: what the weights will be stored in; numbers too large for it are refused as well.

    Raises:
        UserError: as :func:`read_single_file` and :func:`read_folder`, and whatever
            :func:`check_model` and :func:`check_values` find.
    """
    path = Path(path)
    if is_folder(path):
        parts = read_folder(path, variant=variant, prediction_type=prediction_type)
    else:
        parts = read_single_file(
            path,
            config_file=config_file,
            prediction_type=prediction_type,
            ema=ema,
            need_vae=need_vae,
        )
    check_model(parts, path)
    if values:
        check_values(parts, path, dtype)
    return parts


def read_vae(path: str | Path, *, scaling: float = vae.SCALING["sd1"]) -> Component:
    """Reads a VAE from its own file or folder, a whole checkpoint, or a diffusers folder.

    Args:
        scaling: what latents are scaled with, for files that do not say.

    Raises:
        UserError: there is no VAE, it is of another kind, or damaged.
    """
    path = Path(path)
    component = _read(path, scaling)
    check_component("vae", component, path)
    for key, tensor in component.tensors.items():
        check_finite(tensor, f"the VAE's weight {key}", path)
    return component


def _read(path: Path, scaling: float) -> Component:
    if is_folder(path):
        inside = path / "vae" if (path / "vae").is_dir() else path
        config = folder_layout.read_config(inside)
        check_config("vae", config, inside / "config.json")
        return Component(config, vae.todays_names(folder_layout.read_weights(inside)))
    tensors, _, _ = load_tensors(path)
    tensors = single_layout.under(tensors, single_layout.VAE) or tensors
    theirs = any(".up_blocks." in name for name in tensors)
    if theirs:
        tensors = vae.todays_names(tensors)
    elif "decoder.conv_in.weight" not in tensors:
        raise UserError(f"{detect.describe(path)}; there is no VAE in it", where=path)
    plan_of = vae.plan_from_diffusers_shapes if theirs else vae.plan_from_shapes
    plan = plan_of({name: tuple(t.shape) for name, t in tensors.items()})
    tensors = tensors if theirs else to_diffusers(vae.pairs_of(plan), tensors, path)
    return Component(vae.config_from_plan(plan, scaling=scaling, sample_size=512), tensors)
