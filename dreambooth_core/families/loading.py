"""Loading a base: from a diffusers folder or a single file to components in memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreambooth_core.bases.locate import locate
from dreambooth_core.data.fingerprint import fingerprint
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.registry import family_of
from dreambooth_core.formats.detect import identify
from dreambooth_core.formats.tokenizers import load_tokenizers
from dreambooth_core.quiet import quieten_loading

log = logging.getLogger(__name__)


def load_base(options: BaseOptions) -> Components:
    """Loads the base that the options name, on the CPU, in its stored precision made fp32.

    Raises:
        UserError: nothing there, not a model (says what was found instead), a damaged file.
    """
    path = locate(options.model, revision=options.revision, variant=options.variant)
    quieten_loading()
    identity = identify(path)
    if identity.kind not in ("checkpoint", "diffusers"):
        raise UserError(
            f"this is not a base to train but {identity.label}",
            where=f"base.model: {path}",
            do="Give a Stable Diffusion checkpoint or a folder in diffusers layout.",
        )
    models = _from_folder(path, options) if path.is_dir() else _from_file(path, options)
    parts = _components(path, models, options)
    if options.vae:
        parts.vae = load_vae(options.vae)
    if parts.prediction_type not in ("epsilon", "v_prediction", "sample"):
        raise UserError(
            "this file does not say what its UNet predicts",
            where=f"base.model: {path}",
            do="Set base.prediction_type to epsilon or v_prediction (SD 2 at 768: v_prediction).",
        )
    return parts


def _components(path: Path, found: dict[str, Any], options: BaseOptions) -> Components:
    encoders = [found[name] for name in ("text_encoder", "text_encoder_2") if name in found]
    configs = [encoder.config.to_dict() for encoder in encoders]
    unet = found["unet"]
    family = family_of(dict(unet.config), configs, f"base.model: {path}")
    scheduler = found["scheduler"]
    prediction = options.prediction_type
    if prediction == "auto":
        prediction = str(scheduler.get("prediction_type") or "unknown")
    for model in [unet, found["vae"], *encoders]:
        model.eval().requires_grad_(False)
    return Components(
        family=family,
        unet=unet,
        vae=found["vae"],
        text_encoders=encoders,
        tokenizers=load_tokenizers(family.name, path if path.is_dir() else None),
        scheduler_config=scheduler,
        prediction_type=prediction,
        source=options.model,
        fingerprint=fingerprint(unet, found["vae"], *encoders),
        clip_skip=options.clip_skip,
        max_prompt_chunks=options.max_prompt_chunks,
    )


def _from_folder(path: Path, options: BaseOptions) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
    }
    found: dict[str, Any] = {}
    for name, kind in classes.items():
        if not (path / name / "config.json").is_file():
            if name == "text_encoder_2":
                continue
            raise UserError(
                f"this model folder has no {name}/config.json", where=f"base.model: {path}"
            )
        found[name] = _pretrained(kind, path, name, options.variant)
    config = path / "scheduler" / "scheduler_config.json"
    if not config.is_file():
        raise UserError(
            "this model folder has no scheduler/scheduler_config.json, so its noise schedule is "
            "unknown",
            where=f"base.model: {path}",
        )
    found["scheduler"] = json.loads(config.read_text(encoding="utf-8"))
    return found


def _pretrained(kind: Any, path: Path, name: str, variant: str | None) -> nn.Module:
    arguments: dict[str, Any] = {"local_files_only": True, "variant": variant}
    try:
        model: nn.Module = kind.from_pretrained(str(path / name), **arguments)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"the {name} could not be loaded: {reason}",
            where=f"base.model: {path / name}",
            do="The folder may be incomplete; download or convert it again.",
        ) from error
    return model.to(torch.float32)


def _from_file(path: Path, options: BaseOptions) -> dict[str, Any]:
    from dreambooth_core.formats.checkpoints import build, read_single_file

    prediction = None if options.prediction_type == "auto" else options.prediction_type
    stored = read_single_file(path, prediction_type=prediction)
    models = build(stored)
    found: dict[str, Any] = {name: model.to(torch.float32) for name, model in models.items()}
    found["scheduler"] = stored.scheduler_config
    return found


def load_vae(where: str) -> nn.Module:
    """An autoencoder of its own: a diffusers folder (the VAE's or a whole model's) or a file.

    Raises:
        UserError: there is none at ``where``.
    """
    from diffusers import AutoencoderKL

    path = Path(where).expanduser()
    if not path.exists():
        raise UserError("there is no such file or folder", where=f"base.vae: {where}")
    if path.is_dir():
        folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
        if not (folder / "config.json").is_file():
            raise UserError("this folder holds no autoencoder", where=f"base.vae: {where}")
        vae = _pretrained(AutoencoderKL, folder.parent, folder.name, None)
    else:
        from dreambooth_core.formats.checkpoints import read_vae

        vae = read_vae(path)
    return vae.to(torch.float32).eval().requires_grad_(False)
