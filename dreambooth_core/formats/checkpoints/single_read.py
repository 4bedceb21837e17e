"""Reads a single-file checkpoint into its parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.disk import reading
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats import detect, folders, pickles, storage
from dreambooth_core.formats.checkpoints import (
    ldm_yaml,
    prediction,
    scheduler,
    single_layout,
)
from dreambooth_core.formats.checkpoints.config_rules import check_scheduler
from dreambooth_core.formats.checkpoints.parts import ModelParts, check_complete
from dreambooth_core.formats.checkpoints.single_components import Reading, components_of
from dreambooth_core.formats.eight_bits import in_full

OWN_KEY = "dreambooth.model"
"""Metadata key under which our own files keep the configurations that shapes cannot tell."""


def read_single_file(
    path: str | Path,
    *,
    config_file: str | Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    need_vae: bool = True,
) -> ModelParts:
    """Reads a ``.safetensors`` or ``.ckpt`` checkpoint of SD1, SD2 or SDXL.

    Tensors are views on the file's memory map. Sizes come from shapes; what shapes cannot say
    (heads, prediction type, noise schedule) from this program's own metadata, the yaml given or
    beside the file, or the family.

    Args:
        path: the checkpoint.
        config_file: a latent diffusion yaml; default: the one beside the file, if any.
        prediction_type: overrides what the file says.
        ema: take the moving average of the UNet's weights (``model_ema.*``).
        need_vae: whether a file without a VAE is an error.

    Raises:
        UserError: not a checkpoint of these families, incomplete, damaged, or an SD2 model that
            does not say what it predicts.
    """
    path = Path(path)
    raw, metadata, steps = load_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in raw.items()}
    family = single_layout.family_of(shapes)
    if family is None:
        raise Unsupported(
            f"{detect.describe(path)}, not a Stable Diffusion 1, 2 or XL checkpoint", where=path
        )
    yaml = ldm_yaml.find_yaml(path, config_file)
    if yaml and yaml.family not in (None, family):
        raise UserError(
            f"{yaml.path} is for {yaml.family}, and this is {family}",
            where=path,
            do="Leave --original_config_file out.",
        )
    own = {} if config_file else _own(metadata, path)
    found = Reading(path, family, single_layout.normalised(raw, family), own, yaml)
    try:
        components = components_of(found, ema=ema)
    except UserError as error:
        raise (error if error.where else type(error)(error.what, where=path, do=error.do)) from None
    said = (own.get("scheduler") or {}).get("prediction_type")
    answer = prediction.find(
        family,
        found.tensors,
        asked=prediction_type,
        yaml=yaml.prediction_type if yaml else None,
        metadata=metadata | ({"modelspec.prediction_type": str(said)} if said else {}),
        global_step=steps,
        name=path.name,
    )
    used = found.used | set(single_layout.MARKERS)
    parts = ModelParts(
        family=family,
        components=components,
        scheduler=_scheduler(found, answer),
        extras={name: tensor for name, tensor in found.tensors.items() if name not in used},
        metadata={k: v for k, v in metadata.items() if k != OWN_KEY},
        warnings=found.warnings,
    )
    if need_vae or "vae" in components:
        check_complete(parts, path)
    if components["unet"].config.get("sample_size") is None:
        components["unet"].config |= _size(parts)
    return parts


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], int | None]:
    """All tensors of a file, its metadata, and the training steps that a pickle may name. What a
    safetensors file has in 8 bits is read as fp16."""
    if folders.is_folder(path):
        raise UserError("this is a folder, not a file", where=path)
    foreign = detect.foreign(path)
    if foreign is not None:
        raise Unsupported(f"this is {foreign.label}", where=path, do=foreign.advice)
    if pickles.is_pickle(path):
        loaded = pickles.read_pickle(path)
        return loaded.tensors, loaded.metadata, loaded.global_step
    return in_full(storage.read_tensors(path)), storage.read_metadata(path), None


def _own(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The configurations that our own metadata holds. Raises ``UserError`` if it is damaged."""
    try:
        own = reading.parse_json(metadata.get(OWN_KEY, "{}"))
    except ValueError as error:
        raise UserError(f"its metadata {OWN_KEY} is damaged: {error}", where=path) from error
    strange = next((name for name, config in own.items() if not isinstance(config, dict)), None)
    if strange is not None:
        raise UserError(
            f"the configuration {strange[:40]!r} in the metadata is not an object", where=path
        )
    return own


def _scheduler(found: Reading, answer: str) -> dict[str, Any]:
    own = found.own.get("scheduler")
    if own is not None:
        check_scheduler(own, found.path)
        if own.get("prediction_type", "epsilon") == answer:
            return own
    zero = "ztsnr" in found.tensors
    config = scheduler.default_scheduler(found.family, answer, zero_terminal_snr=zero)
    if found.yaml is not None:
        config |= found.yaml.betas
    return config


def _size(parts: ModelParts) -> dict[str, Any]:
    """The edge of the latents that the model was made for, by metadata or family.

    SD2's v models are the ones at 768 pixels; their attention overflows in fp16 unless it is
    computed in fp32.
    """
    velocity = parts.family == "sd2" and parts.prediction_type == "v_prediction"
    edge = 1024 if parts.family.startswith("sdxl") else 768 if velocity else 512
    # Two to four digits: what is beyond is no size of an image.
    said = re.fullmatch(r"(\d{2,4})x(\d{2,4})", parts.metadata.get("modelspec.resolution", ""))
    if said:
        edge = max(int(said[1]), int(said[2]))
    vae = parts.components.get("vae")
    levels = len(vae.config["block_out_channels"]) if vae else 4
    return {"sample_size": max(1, edge // 2 ** (levels - 1)), "upcast_attention": velocity}
