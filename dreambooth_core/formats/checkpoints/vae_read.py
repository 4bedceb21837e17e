"""Reads an autoencoder alone, from whatever holds one."""

from __future__ import annotations

from pathlib import Path

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.formats import detect, folders
from dreambooth_core.formats.checkpoints import folder_layout, single_layout, vae
from dreambooth_core.formats.checkpoints.check import check_component, check_finite
from dreambooth_core.formats.checkpoints.config_rules import check_config
from dreambooth_core.formats.checkpoints.pairs import to_diffusers
from dreambooth_core.formats.checkpoints.parts import Component
from dreambooth_core.formats.checkpoints.single_read import load_tensors


def read_vae(path: str | Path, *, scaling: float = vae.SCALING["sd1"]) -> Component:
    """Reads a VAE from its own file or folder, a whole checkpoint, or a diffusers folder.

    Args:
        path: where the VAE is.
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
    if folders.is_folder(path):
        inside = path / "vae" if (path / "vae").is_dir() else path
        config = folder_layout.read_config(inside)
        check_config("vae", config, inside / "config.json")
        return Component(config, vae.todays_names(folder_layout.read_weights(inside)))
    tensors, _, _ = load_tensors(path)
    tensors = single_layout.under(tensors, single_layout.VAE) or tensors
    if any(".up_blocks." in name for name in tensors):
        return _from_diffusers_names(tensors, scaling)
    if "decoder.conv_in.weight" not in tensors:
        raise UserError(f"{detect.describe(path)}; there is no VAE in it", where=path)
    plan = vae.plan_from_shapes({name: tuple(t.shape) for name, t in tensors.items()})
    config = vae.config_from_plan(plan, scaling=scaling, sample_size=512)
    return Component(config, to_diffusers(vae.pairs_of(plan), tensors, path))


def _from_diffusers_names(tensors: dict[str, torch.Tensor], scaling: float) -> Component:
    tensors = vae.todays_names(tensors)
    plan = vae.plan_from_diffusers_shapes({name: tuple(t.shape) for name, t in tensors.items()})
    return Component(vae.config_from_plan(plan, scaling=scaling, sample_size=512), tensors)
