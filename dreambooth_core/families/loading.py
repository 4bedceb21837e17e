"""Loading a base: from what the options name to components in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dreambooth_core.bases.locate import commit_of, is_commit, is_on_hub, locate
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Family
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files.read import SplitParts, pieces_in, read_split, there
from dreambooth_core.families.host_files.tokenizers import split_tokenizers
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.recognition.detect import identify
from dreambooth_core.families.registry import denoiser_among, family_of, family_of_pipeline
from dreambooth_core.families.stable_diffusion.read import read_model, read_vae
from dreambooth_core.formats.checkpoints.folder_layout import read_config
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.checkpoints.rules import check, number, whole
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.formats.folders import is_file
from dreambooth_core.quiet import quieten_loading

RECOMMENDED = "recommended.json"
"""Beside a base in a folder: what its makers recommend, and its files do not tell."""


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
            prediction type that nothing tells, a guidance for a base that is told none.
    """
    quieten_loading()
    path = locate(options.model, revision=options.revision, variant=options.variant)
    family, configs, stored = _look(options, path)
    loaded = family.load(path, stored, weights=weights)
    models = loaded.models
    for model in models.values():
        model.eval().requires_grad_(False)
    encoders = [models[name] for name in family.text_encoders]
    denoiser, vae = models[family.denoiser], models["vae"]
    if tokenizers is None and isinstance(stored, SplitParts):
        tokenizers = split_tokenizers(family, options.tokenizer, configs, stored.words)
    elif tokenizers is None:
        tokenizers = family.load_tokenizers(path, configs)
    parts = Components(
        family=family,
        denoiser=denoiser,
        vae=vae,
        text_encoders=encoders,
        tokenizers=tokenizers,
        scheduler_config=loaded.scheduler,
        prediction_type=loaded.prediction_type,
        source=options.model,
        commit=commit_of(path),
        fingerprint=fingerprint(denoiser, vae, *encoders) if weights else "",
        clip_skip=options.clip_skip,
        guidance=options.guidance,
        max_prompt_chunks=options.max_prompt_chunks,
        settings=loaded.settings,
        recommended=recommended(path),
        companions={name: models[name] for name in family.companions},
    )
    if options.guidance != 1.0 and not parts.is_told_guidance:
        raise UserError(
            f"this {family.label} base is not told its guidance: {options.guidance:g} would do "
            "nothing in training",
            where="base.guidance",
            do="Leave it at 1; validation.guidance_scale is that of validation images.",
        )
    return parts


def read_configs(options: BaseOptions, path: Path) -> dict[str, dict[str, Any]]:
    """The configurations of a base's networks. No weight is read where the files allow it.

    Raises:
        UserError: there is no such base, or it is none.
    """
    return _look(options, path, values=False)[1]


def _look(
    options: BaseOptions, path: Path, *, values: bool = True
) -> tuple[Family, dict[str, dict[str, Any]], ModelParts | None]:
    """The family of a base, its configurations and, where it was opened for that, its tensors."""
    where = f"base.model: {path}"
    pieces = pieces_in(path)
    if found := denoiser_among(pieces):
        others = [other for other in pieces if other is not found[2]]
        split = read_split(options, *found, others)
        return found[0], {name: part.config for name, part in split.components.items()}, split
    identity = identify(path)
    if identity.kind not in ("checkpoint", "diffusers"):
        raise UserError(
            f"this is not a base to train but {identity.label}",
            where=where,
            do=f"{identity.advice or 'Give a checkpoint or a folder in diffusers layout'}.",
        )
    for key in ("text_encoders", "tokenizer"):
        if getattr(options, key):
            raise UserError(
                "this is only for a base whose denoiser is a file of its own, of a known family",
                where=f"base.{key}",
                do=f"Leave it out, or give such a file as base.model ({path.name} is none).",
            )
    family = family_of_pipeline(str(identity.details.get("pipeline", "")))
    if family is not None:
        for name in family.networks:
            family.require_part(path, name)
        return family, {name: read_config(path / name) for name in family.networks}, None
    stored = read_model(
        path,
        prediction_type=None if options.prediction_type == "auto" else options.prediction_type,
        variant=options.variant,
        need_vae=options.vae is None,
        values=values,
    )
    if options.vae:
        stored.components["vae"] = read_vae(there(options.vae, "base.vae"))
    configs = {name: part.config for name, part in stored.components.items()}
    return family_of(configs, where), configs, stored


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
    found = recorded or commit_of(
        locate(options.model, revision=options.revision, variant=options.variant)
    )
    return replace(options, revision=found or options.revision)


def recommended(path: Path) -> dict[str, Any]:
    """What is recommended beside a base, or nothing."""
    file = path / RECOMMENDED
    if not path.is_dir() or not is_file(file):
        return {}
    found = read_json(file)
    rules = {"steps": whole(1, 1000), "guidance": number(0, 100), "resolution": whole(8, 16384)}
    check(found, rules, file)
    return found
