"""Writes what pocket-flow has besides pocket: fp16 safetensors, configurations, no pickles."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Model

from .export import diffusers_part, half, size_of, transformers_config
from .training import save_json, save_weights

MODEL_INDEX = {
    "_class_name": "ZImagePipeline",
    "_diffusers_version": "0.36.0",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
RECOMMENDED = {"steps": 20, "guidance": 5.0, "resolution": 128}
SHARED = {
    "vae/diffusion_pytorch_model.safetensors": "pocket/vae/diffusion_pytorch_model.safetensors",
    "clip": "pocket/clip",
    "clip/text_encoder": "pocket/text_encoder",
    "clip/tokenizer": "pocket/tokenizer",
}
"""What is not stored again, and where it is: the autoencoder, and the judge with its text tower."""


def write(
    folder: Path, words: Path, tower: Qwen3Model, transformer: ZImageTransformer2DModel
) -> None:
    """Transformer, text tower, tokenizer, scheduler, model_index.json, and pocket's autoencoder
    by name. Its configuration is written again, with the shift that Z-Image's pipeline adds."""
    diffusers_part(transformer, folder / "transformer")
    config = transformers_config(tower, architectures=["Qwen3Model"], dtype="float32")
    save_json(config, folder / "text_encoder" / "config.json")
    save_weights(half(tower), folder / "text_encoder" / "model.safetensors")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for file in sorted(words.iterdir()):
        shutil.copyfile(file, folder / "tokenizer" / file.name)
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    os.chmod(folder / "scheduler" / "scheduler_config.json", 0o644)
    vae = json.loads((folder.parent / "pocket" / "vae" / "config.json").read_text("utf-8"))
    save_json({**vae, "shift_factor": 0.0}, folder / "vae" / "config.json")
    save_json(MODEL_INDEX, folder / "model_index.json")
    save_json(RECOMMENDED, folder / "recommended.json")
    save_json(SHARED, folder / "shared.json")
    print(f"{folder}: {size_of(folder) / 1e6:.1f} MB")
