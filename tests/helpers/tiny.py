"""Real models, only very small, with random weights: they run in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel

WIDTH = 32
"""Width of the text encoder."""


def tiny_unet(**changes: object) -> UNet2DConditionModel:
    """A UNet in SD1's layout with two levels."""
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        **changes,
    }
    return UNet2DConditionModel(**config)


def tiny_vae() -> AutoencoderKL:
    """An autoencoder with four levels, so that a latent cell is 8 pixels wide."""
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        sample_size=64,
    )


def tiny_text_encoder() -> CLIPTextModel:
    """A CLIP text encoder with the real vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            vocab_size=49408,
            bos_token_id=49406,
            eos_token_id=49407,
        )
    )


def tiny_sd1(folder: Path, seed: int = 0) -> Path:
    """A whole SD1 model as a diffusers folder, without tokenizer files."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae, text = tiny_unet(), tiny_vae(), tiny_text_encoder()
        text.get_parameter(_norm_bias(text)).data.normal_(std=0.1)
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    scheduler = {
        "_class_name": "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
    }
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _norm_bias(text: CLIPTextModel) -> str:
    return next(n for n, _ in text.named_parameters() if n.endswith("final_layer_norm.bias"))


COLOURS = ("crimson", "teal", "gold", "indigo", "olive")


def draw_pictures(folder: Path, count: int = 3, size: tuple[int, int] = (80, 64)) -> Path:
    """Pictures of a coloured ball, one colour each; ``size`` is (width, height)."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image = Image.new("RGB", size, "lightgrey")
        middle, radius = (size[0] // 2, size[1] // 2), size[1] // 3
        box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
        ImageDraw.Draw(image).ellipse(box, fill=COLOURS[index % len(COLOURS)])
        image.save(folder / f"ball-{index}.png")
    return folder
