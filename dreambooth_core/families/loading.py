"""Loading a base: from a diffusers folder or a single file to components in memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.bases.locate import commit_of, is_commit, is_on_hub, locate
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.registry import family_of
from dreambooth_core.formats.checkpoints.build import build
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.checkpoints.read import read_model
from dreambooth_core.formats.checkpoints.rules import check, number, whole
from dreambooth_core.formats.detect import identify
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.formats.folders import is_file
from dreambooth_core.formats.reading import read_json
from dreambooth_core.formats.tokenizers import load_tokenizers
from dreambooth_core.quiet import quieten_loading

RECOMMENDED = "recommended.json"
"""Beside a base in a folder: sampling settings that its makers recommend."""


def load_base(
    options: BaseOptions, *, weights: bool = True, tokenizers: list[Any] | None = None
) -> Components:
    """Loads the base that the options name, on the CPU, in fp32, frozen.

    Args:
        options: the ``base`` section.
        weights: False leaves them in their files, unread, in the precision that they have there:
            to look at the base, not to run it. It then has no fingerprint.
        tokenizers: of the same base, loaded before and not changed since; None reads them.

    Raises:
        UserError: nothing there, not a model (says what was found instead), a damaged file, a
            prediction type that nothing tells.
    """
    quieten_loading()
    path = locate(options.model, revision=options.revision, variant=options.variant)
    where = f"base.model: {path}"
    identity = identify(path)
    if identity.kind not in ("checkpoint", "diffusers"):
        raise UserError(
            f"this is not a base to train but {identity.label}",
            where=where,
            do="Give a Stable Diffusion checkpoint or a folder in diffusers layout.",
        )
    stored = read_stored(options, path)
    _refuse_other_inputs(stored, where)
    models = build(stored, dtype=torch.float32 if weights else None)
    encoders = [models[name] for name in ("text_encoder", "text_encoder_2") if name in models]
    family = family_of(
        stored.components["unet"].config,
        [stored.components[n].config for n in models if n.startswith("text_encoder")],
        where,
    )
    for model in models.values():
        model.eval().requires_grad_(False)
    if tokenizers is None:
        tokenizers = load_tokenizers(
            family.name,
            path if path.is_dir() else None,
            [stored.components[n].config for n in models if n.startswith("text_encoder")],
        )
    return Components(
        family=family,
        unet=models["unet"],
        vae=models["vae"],
        text_encoders=encoders,
        tokenizers=tokenizers,
        scheduler_config=stored.scheduler,
        prediction_type=stored.prediction_type,
        source=options.model,
        commit=commit_of(path),
        fingerprint=fingerprint(models["unet"], models["vae"], *encoders) if weights else "",
        clip_skip=options.clip_skip,
        max_prompt_chunks=options.max_prompt_chunks,
        recommended=recommended(path),
    )


def _refuse_other_inputs(stored: ModelParts, where: str) -> None:
    """A UNet that wants a depth map or a picture to edit is given neither here."""
    latent = stored.components["vae"].config.get("latent_channels", 4)
    channels = stored.components["unet"].config.get("in_channels", latent)
    if channels not in (latent, 2 * latent + 1):
        raise Unsupported(
            f"a UNet with {channels} input channels", where=where, do="It can only be converted."
        )


def pinned(options: BaseOptions, recorded: str | None = None) -> BaseOptions:
    """The options with the commit in place of a hub id's branch, which may move meanwhile.

    Args:
        options: the ``base`` section.
        recorded: the commit that a checkpoint was made with; a commit in the options goes first.

    Raises:
        UserError: as :func:`~dreambooth_core.bases.locate.locate`.
    """
    if not is_on_hub(options.model) or is_commit(options.revision):
        return options
    found = recorded
    if found is None:
        revision = options.revision
        found = commit_of(locate(options.model, revision=revision, variant=options.variant))
    return replace(options, revision=found or options.revision)


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


def recommended(path: Path) -> dict[str, Any]:
    """The sampling settings recommended beside a base, or none."""
    file = path / RECOMMENDED
    if not path.is_dir() or not is_file(file):
        return {}
    found = read_json(file)
    check(found, {"steps": whole(1, 1000), "guidance": number(0, 100)}, file)
    return found
