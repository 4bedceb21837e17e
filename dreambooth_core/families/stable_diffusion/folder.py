"""Reads and writes a diffusers folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.disk import reading, replacing_folder, settle, write_bytes, write_json
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.clip_tokenizers import (
    check_tokenizer,
    padding_of,
    tokenizer_files,
    tokenizer_name,
    tokenizer_texts,
)
from dreambooth_core.families.stable_diffusion import vae
from dreambooth_core.families.stable_diffusion.config_rules import check_config
from dreambooth_core.families.stable_diffusion.parts import (
    TEXT_ENCODERS,
    check_complete,
    is_inpainting,
)
from dreambooth_core.families.stable_diffusion.prediction import spelled
from dreambooth_core.families.stable_diffusion.scheduler import default_scheduler
from dreambooth_core.families.stable_diffusion.single_layout import kept
from dreambooth_core.formats import folders, storage
from dreambooth_core.formats.checkpoints import folder_layout as layout
from dreambooth_core.formats.checkpoints.networks import prefixed
from dreambooth_core.formats.checkpoints.parts import FLOW, Component, ModelParts, cast
from dreambooth_core.formats.checkpoints.rules import shown
from dreambooth_core.formats.privacy import cleaned

REMAINDER = "single_file_remainder.safetensors"
"""Beside ``model_index.json``: what the single file held and diffusers has no place for."""

FEATURES: dict[str, Any] = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}
"""How CLIP's vision tower takes images: what a safety checker would need."""


def family_of(path: Path, index: Mapping[str, Any]) -> str | None:
    """The family of a diffusers folder, or ``None`` for a pipeline of another kind."""
    kind = str(index.get("_class_name", ""))
    if kind.startswith("StableDiffusionXL"):
        first = index.get("text_encoder")
        there = isinstance(first, list) and first and first[0] is not None
        return "sdxl" if there else "sdxl_refiner"
    if not kind.startswith("StableDiffusion") or kind.startswith("StableDiffusion3"):
        return None
    if not (path / "text_encoder").is_dir():
        return None
    config = layout.read_config(path / "text_encoder")
    # OpenAI's CLIP and OpenCLIP differ in the activation; width tells where it is not written.
    return "sd2" if config.get("hidden_act") == "gelu" else "sd1"


def read_folder(
    path: str | Path, *, variant: str | None = None, prediction_type: str | None = None
) -> ModelParts:
    """Reads a diffusers folder of SD1, SD2 or SDXL.

    Tensors are views on the files' memory maps, in the folder's dtype.

    Args:
        path: the folder with ``model_index.json``.
        variant: read ``….<variant>.safetensors`` where it exists, for example ``fp16``.
        prediction_type: overrides what the scheduler's configuration says.

    Raises:
        UserError: no such folder, another pipeline, or a network that is missing or damaged.
    """
    path = Path(path)
    settle(path)
    index_file = path / "model_index.json"
    if not folders.is_file(index_file):
        raise UserError("this is not a diffusers folder: it has no model_index.json", where=path)
    index = reading.read_json(index_file)
    family = family_of(path, index)
    if family is None:
        kind = shown(index.get("_class_name", "unknown"))
        raise Unsupported(f"a folder of {kind}, not of Stable Diffusion 1, 2 or XL", where=path)
    components = {}
    for name in ("unet", "vae", *TEXT_ENCODERS[family]):
        if not (path / name).is_dir():
            raise UserError(f"the folder {name} is missing", where=path)
        config = layout.read_config(path / name)
        check_config(name, config, path / name / "config.json")
        tensors = layout.read_weights(path / name, variant)
        components[name] = Component(config, _todays_names(name, tensors))
    scheduler = _scheduler(path, family, prediction_type)
    extras, metadata = {}, {}
    if folders.is_file(path / REMAINDER):
        extras = storage.read_tensors(path / REMAINDER)
        metadata = storage.read_metadata(path / REMAINDER)
    parts = ModelParts(family, components, scheduler, extras, metadata)
    for name in TEXT_ENCODERS[family]:
        folder = path / tokenizer_name(name)
        if folder.is_dir():
            check_tokenizer(folder, components[name].config.get("vocab_size", 49408))
            parts.tokenizers[folder.name] = folder
    return parts


def write_folder(
    parts: ModelParts,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extras: str = "text",
) -> list[Path]:
    """Writes a complete diffusers folder; returns the files.

    Complete means: weights, configurations, scheduler, tokenizers, feature extractor,
    ``model_index.json``. The safety checker is left out and said to be.

    Args:
        path: the folder to make. A pipeline that is there is replaced as a whole; what else the
            folder holds stays.
        dtype: what floating-point weights are cast to; default: as they are.
        extras: which unused tensors of the single file to keep in :data:`REMAINDER` (``text``,
            ``all`` or ``none``), so that going back is exact.

    Raises:
        UserError: a network is missing.
        SaveFailed: a file could not be written; what was there is intact.
    """
    path = Path(path)
    check_complete(parts, path)
    with replacing_folder(path, (*folders.PIPELINE, REMAINDER)) as part:
        files = _write_files(parts, part, dtype, extras)
        return [path / file.relative_to(part) for file in files]


def _write_files(
    parts: ModelParts, path: Path, dtype: torch.dtype | None, extras: str
) -> list[Path]:
    files: list[Path] = []

    def put(name: str, value: Any) -> None:
        files.append(path / name)
        write_json(path / name, value)

    for name, component in parts.components.items():
        stem = "model" if name.startswith("text_encoder") else "diffusion_pytorch_model"
        files.append(path / name / f"{stem}.safetensors")
        tensors = {key: cast(tensor, dtype) for key, tensor in component.tensors.items()}
        storage.write_tensors(files[-1], tensors, {"format": "pt"})
        put(f"{name}/config.json", layout.stored_config(name, component.config))
    files += _write_tokenizers(parts, path)
    put("scheduler/scheduler_config.json", cleaned(parts.scheduler))
    if not parts.family.startswith("sdxl"):
        put("feature_extractor/preprocessor_config.json", FEATURES)
    remainder = kept(parts, extras)
    if remainder or parts.metadata:
        files.append(path / REMAINDER)
        storage.write_tensors(files[-1], remainder, parts.metadata)
    put("model_index.json", model_index(parts))
    return files


def _write_tokenizers(parts: ModelParts, path: Path) -> list[Path]:
    files = []
    for encoder in TEXT_ENCODERS[parts.family]:
        name = tokenizer_name(encoder)
        own = parts.tokenizers.get(name)
        if own is not None and own.is_dir():
            content = tokenizer_texts(own)
            file = "tokenizer_config.json"
            if file in content:  # which often names the folder that it was loaded from
                settings = cleaned(json.loads(content[file]))
                content[file] = json.dumps(settings, indent=2, ensure_ascii=False).encode()
        else:
            length = int(parts.components[encoder].config.get("max_position_embeddings", 77))
            content = tokenizer_files(padding_of(parts.family, encoder), max_length=length)
        for file, data in content.items():
            write_bytes(path / name / file, data)
            files.append(path / name / file)
    return files


def _todays_names(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Text encoders with ``text_model.`` and without buffers; the VAE's attention as it is now."""
    if name == "vae":
        return vae.todays_names(tensors)
    if not name.startswith("text_encoder"):
        return tensors
    return prefixed(tensors)


def _scheduler(path: Path, family: str, asked: str | None) -> dict[str, Any]:
    file = path / "scheduler" / "scheduler_config.json"
    if folders.is_file(file):
        config = folders.read_scheduler(file)
    else:
        config = default_scheduler(family, spelled(asked or "epsilon"))
    if config.get("_class_name") == "FlowMatchEulerDiscreteScheduler":
        shift = config.get("shift", 1.0)
        config = {**default_scheduler(family, FLOW), "flow_shift": shift}
    kind = spelled(asked) if asked else config.get("prediction_type")
    if FLOW in (kind, config.get("prediction_type")) and kind != config.get("prediction_type"):
        return default_scheduler(family, str(kind))  # no schedule of the one does for the other
    return {**config, "prediction_type": kind} if asked else config


def model_index(parts: ModelParts) -> dict[str, Any]:
    """The content of ``model_index.json``."""
    import diffusers

    xl = parts.family.startswith("sdxl")
    kind = "StableDiffusionXL" if xl else "StableDiffusion"
    if parts.family == "sdxl_refiner":
        kind += "Img2Img"
    elif is_inpainting(parts):
        kind += "Inpaint"
    index: dict[str, Any] = {
        "_class_name": f"{kind}Pipeline",
        "_diffusers_version": diffusers.__version__,
    }
    if xl:
        index["force_zeros_for_empty_prompt"] = parts.family == "sdxl"
        if parts.family == "sdxl_refiner":
            index |= {"requires_aesthetics_score": True, "text_encoder": [None, None]}
            index["tokenizer"] = [None, None]
        index |= {"feature_extractor": [None, None], "image_encoder": [None, None]}
    else:
        index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
        index |= {"image_encoder": [None, None], "safety_checker": [None, None]}
        index["requires_safety_checker"] = False
    index["scheduler"] = ["diffusers", parts.scheduler["_class_name"]]
    for name in TEXT_ENCODERS[parts.family]:
        projected = "WithProjection" if name == "text_encoder_2" else ""
        index[name] = ["transformers", f"CLIPTextModel{projected}"]
    for name in TEXT_ENCODERS[parts.family]:
        index[tokenizer_name(name)] = ["transformers", "CLIPTokenizer"]
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    return index
