"""Prompts for a real ComfyUI, and what is read from what it made."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

from dreambooth_core.formats.storage import read_tensors
from tests.hosts.comfyui_pack import CHECKPOINT
from tests.hosts.comfyui_server import Prompt, Server

QUICK = (
    "data.resolution=64\nvalidation.num_inference_steps=4\nsave.every_steps=4\n"
    "method.target_modules=all"
)
FIRST_SEED = time.time_ns() % 1_000_000_000 * 10
"""Seeds begin here, so that no run that the tests made before is found again."""


def learning(name: str, *, steps: int = 8, seed: int = 0, **more: Any) -> Prompt:
    """Images → Settings → Train LoRA, as nodes i, s, t."""
    return {
        "i": node("DreamBoothImages", folder="star", instance_prompt="a photo of sks star"),
        "s": node(
            "DreamBoothSettings",
            preset="(none)",
            steps=steps,
            learning_rate="0.002",
            random_seed=FIRST_SEED + seed,
            overrides=QUICK,
        ),
        "t": node(
            "DreamBoothTrainLora",
            checkpoint=CHECKPOINT,
            concept=["i", 0],
            name=name,
            settings=["s", 0],
            **more,
        ),
    }


def drawing(
    prefix: str,
    model: list[Any],
    clip: list[Any],
    vae: list[Any],
    text: str = "a photo of sks star",
) -> Prompt:
    """Prompt → KSampler → picture and latent, as nodes with a prefix."""
    p = prefix
    return {
        f"{p}+": node("CLIPTextEncode", clip=clip, text=text),
        f"{p}-": node("CLIPTextEncode", clip=clip, text=""),
        f"{p}e": node("EmptyLatentImage", width=64, height=64),
        f"{p}k": node(
            "KSampler",
            model=model,
            seed=5,
            steps=8,
            cfg=3.0,
            sampler_name="ddim",
            scheduler="simple",
            positive=[f"{p}+", 0],
            negative=[f"{p}-", 0],
            latent_image=[f"{p}e", 0],
        ),
        f"{p}d": node("VAEDecode", samples=[f"{p}k", 0], vae=vae),
        f"{p}image": node("SaveImage", images=[f"{p}d", 0], filename_prefix=f"tests/{p}"),
        f"{p}latent": node("SaveLatent", samples=[f"{p}k", 0], filename_prefix=f"tests/{p}"),
    }


def applied(adapter: list[Any], model: list[Any], clip: list[Any], **how: Any) -> Any:
    return node("DreamBoothApplyAdapter", adapter=adapter, model=model, clip=clip, **how)


def loader() -> Prompt:
    return {"c": node("CheckpointLoaderSimple", ckpt_name=CHECKPOINT)}


BASE: tuple[list[Any], list[Any], list[Any]] = (["c", 0], ["c", 1], ["c", 2])


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def latent(server: Server, done: Any, which: str) -> torch.Tensor:
    (one,) = done.outputs[which]["latents"]
    tensors = read_tensors(server.folder / "output" / one["subfolder"] / one["filename"])
    found: torch.Tensor = tensors["latent_tensor"]
    return found


def pixels(path: Path) -> numpy.ndarray[Any, Any]:
    with Image.open(path) as opened:
        return numpy.asarray(opened.convert("RGB")).astype(int)
