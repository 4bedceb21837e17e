"""The small files of a diffusers folder, and where its weights lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.formats import pickles, storage
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.tokenizers import PADDING, tokenizer_name

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
"""How CLIP's vision tower takes pictures: what a safety checker would need."""

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def model_index(parts: ModelParts) -> dict[str, Any]:
    """The content of ``model_index.json``."""
    import diffusers

    xl = parts.family.startswith("sdxl")
    kind = "StableDiffusionXL" if xl else "StableDiffusion"
    if parts.family == "sdxl_refiner":
        kind += "Img2Img"
    elif parts.inpainting:
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
    for name in parts.components:
        if name.startswith("text_encoder"):
            projected = "WithProjection" if name == "text_encoder_2" else ""
            index[name] = ["transformers", f"CLIPTextModel{projected}"]
    for i in range(len(PADDING[parts.family])):
        index[tokenizer_name(parts.family, i)] = ["transformers", "CLIPTokenizer"]
    index["unet"] = ["diffusers", "UNet2DConditionModel"]
    index["vae"] = ["diffusers", "AutoencoderKL"]
    return index


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON object from a file. Raises ``UserError`` that begins with ``what``."""
    try:
        loaded = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{what}: {path.name} is missing", where=path.parent) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {error}", where=path) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{what}: it holds no object", where=path)
    return loaded


def read_config(folder: Path) -> dict[str, Any]:
    """A network's ``config.json``. Raises ``UserError``."""
    return read_json(folder / "config.json", "the configuration cannot be read")


def read_weights(folder: Path, variant: str | None = None) -> dict[str, torch.Tensor]:
    """A network's weights: safetensors, sharded or whole, else pickles; the variant first.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    tails = [f".{variant}", ""] if variant else ["", ".fp16"]
    for ending, read in ((".safetensors", storage.read_tensors), (".bin", _read_bin)):
        for tail in tails:
            for stem in _STEMS:
                index = folder / f"{stem}{ending}.index{tail}.json"
                if index.is_file():
                    return _read_shards(index)
                whole = folder / f"{stem}{tail}{ending}"
                if whole.is_file():
                    return read(whole)
    raise UserError("there are no weights in this folder", where=folder)


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    names = set(
        read_json(index, "the list of shards cannot be read").get("weight_map", {}).values()
    )
    found: dict[str, torch.Tensor] = {}
    for name in sorted(names):
        shard = index.parent / Path(str(name)).name
        found |= _read_bin(shard) if shard.suffix == ".bin" else storage.read_tensors(shard)
    return found


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    return pickles.read_pickle(path).tensors
