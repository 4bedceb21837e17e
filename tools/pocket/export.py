"""Writes pocket as a diffusers folder: fp16 safetensors, configurations, no pickles."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, ZImageTransformer2DModel
from torch import nn
from transformers import CLIPTextModel

from .denoiser import build_scheduler
from .training import save_json, save_weights
from .vision import Scorer

MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.30.0",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
PROMPTED = ("night", "purple", "grass", "brick", "sunset", "white", "gray", "sky", "sand")
"""Backgrounds in which subjects are judged; pocket knows no other places."""
RECOMMENDED = {"steps": 25, "guidance": 3.0}
PREPROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 64},
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
    "resample": 1,
    "do_convert_rgb": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def half(module: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The module's weights in fp16, names beginning with ``prefix``.

    ``position_ids`` buffers are left out, as transformers does.
    """
    weights = {}
    for name, tensor in module.state_dict().items():
        if "position_ids" not in name:
            full = name if name.startswith(prefix) else prefix + name
            weights[full] = tensor.to(torch.float16)
    return weights


def transformers_config(model: object, **changes: object) -> dict[str, object]:
    """A transformers configuration without this machine's versions and types."""
    values = model.config.to_diff_dict()  # type: ignore[attr-defined]
    for key in ("transformers_version", "dtype", "torch_dtype"):
        values.pop(key, None)
    return {**values, **changes}


def diffusers_part(
    model: UNet2DConditionModel | AutoencoderKL | ZImageTransformer2DModel, folder: Path
) -> None:
    """A network of diffusers with its configuration."""
    values = {k: v for k, v in model.config.items() if not k.startswith("_")}
    values = {"_class_name": type(model).__name__, "_diffusers_version": "0.30.0", **values}
    save_json(values, folder / "config.json")
    save_weights(half(model), folder / "diffusion_pytorch_model.safetensors")


def write_pipeline(
    folder: Path, unet: UNet2DConditionModel, text: CLIPTextModel, vae: AutoencoderKL
) -> None:
    """UNet, autoencoder, text tower, scheduler and model_index.json.

    The text tower's names begin with ``text_model.``: transformers 4 needs that prefix and would
    otherwise fill in random weights; transformers 5 reads both.
    """
    diffusers_part(unet, folder / "unet")
    diffusers_part(vae, folder / "vae")
    save_json(
        transformers_config(
            text,
            architectures=["CLIPTextModel"],
            model_type="clip_text_model",
            torch_dtype="float32",  # to compute in, whatever it is stored in
        ),
        folder / "text_encoder" / "config.json",
    )
    save_weights(half(text, "text_model."), folder / "text_encoder" / "model.safetensors")
    build_scheduler().save_pretrained(folder / "scheduler")
    scheduler = folder / "scheduler" / "scheduler_config.json"
    values = json.loads(scheduler.read_text(encoding="utf-8"))
    save_json({**values, "_diffusers_version": "0.30.0"}, scheduler)
    os.chmod(scheduler, 0o644)
    save_json(MODEL_INDEX, folder / "model_index.json")
    save_json(RECOMMENDED, folder / "recommended.json")


def write_scorer(folder: Path, scorer: Scorer) -> None:
    """The vision tower with its projection, and what belongs to the text's side of CLIP.

    ``clip/`` holds a ``CLIPVisionModelWithProjection`` and ``text_projection.safetensors`` with
    ``text_projection.weight`` [64, 64] and ``logit_scale``.
    """
    target = folder / "clip"
    vision = scorer.vision
    save_json(
        transformers_config(
            vision,
            architectures=["CLIPVisionModelWithProjection"],
            model_type="clip_vision_model",
        ),
        target / "config.json",
    )
    save_weights(half(vision), target / "model.safetensors")
    save_json(PREPROCESSOR, target / "preprocessor_config.json")
    save_json([f"{{}} on a {name} background" for name in PROMPTED], target / "prompts.json")
    extra = {
        "text_projection.weight": scorer.text_projection.weight.to(torch.float16),
        "logit_scale": scorer.logit_scale.detach().float(),
    }
    save_weights(extra, target / "text_projection.safetensors")


def size_of(folder: Path) -> int:
    """Bytes of all files of the folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
