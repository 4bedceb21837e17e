"""Generating images with loaded components, through the family's diffusers pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.text import Conditioning
from dreambooth_core.randomness import generator

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
"""Short names of samplers: the diffusers class and what is set beside the base's own values."""


@dataclass(frozen=True)
class SamplingSettings:
    """How images are made."""

    steps: int = 25
    guidance: float = 7.0
    scheduler: str = "ddim"
    """A name out of ``SCHEDULERS``; empty for the base's own."""
    width: int | None = None
    height: int | None = None
    negative_prompt: str = ""
    batch_size: int = 4


def generate(
    parts: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    on_image: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Image.Image]:
    """One image for each prompt and seed.

    An image depends on its prompt, seed and settings, not on which others are made beside it.

    Args:
        on_image: called with (images done, images wanted) after each batch.
        should_stop: asked at every denoising step.

    Raises:
        Stopped: ``should_stop`` said so.
    """
    pipeline = build_pipeline(parts, settings.scheduler)
    images: list[Image.Image] = []
    models = [*parts.models.values(), parts.vae]
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        for start in range(0, len(prompts), settings.batch_size):
            chunk = slice(start, start + settings.batch_size)
            with torch.no_grad():
                latents = _denoise(
                    pipeline, parts, prompts[chunk], seeds[chunk], settings, should_stop
                )
                images += decode(parts, latents)
            if on_image:
                on_image(len(images), len(prompts))
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    return images


def build_pipeline(parts: Components, scheduler: str) -> Any:
    """The family's pipeline around the very modules of ``parts``."""
    import diffusers

    name, changes = SCHEDULERS[scheduler] if scheduler else _own_scheduler(parts)
    config = {**parts.scheduler_config, **changes}
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    config["prediction_type"] = parts.prediction_type
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules: dict[str, Any] = {
            "vae": parts.vae,
            "unet": parts.unet,
            "scheduler": getattr(diffusers, name).from_config(config),
            "text_encoder": parts.text_encoders[0],
            "tokenizer": parts.tokenizers[0],
        }
        if len(parts.text_encoders) > 1:
            modules |= {
                "text_encoder_2": parts.text_encoders[1],
                "tokenizer_2": parts.tokenizers[1],
            }
        else:
            modules |= {
                "safety_checker": None,
                "feature_extractor": None,
                "requires_safety_checker": False,
            }
        pipeline = parts.family.pipeline_class(parts)(**modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _own_scheduler(parts: Components) -> tuple[str, dict[str, Any]]:
    """The scheduler that the base names, where it is one of ours; else DDIM."""
    named = parts.scheduler_config.get("_class_name")
    return next((s for s in SCHEDULERS.values() if s[0] == named), SCHEDULERS["ddim"])


def _denoise(
    pipeline: Any,
    parts: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    should_stop: Callable[[], bool] | None,
) -> Tensor:
    count = len(prompts)
    both = parts.family.encode(parts, [*prompts, *[settings.negative_prompt] * count])
    dtype = next(parts.unet.parameters()).dtype
    both = both.to(device=next(parts.unet.parameters()).device, dtype=dtype)
    positive = Conditioning(both.embeds[:count], _half(both.pooled, slice(0, count)))
    negative = Conditioning(both.embeds[count:], _half(both.pooled, slice(count, None)))

    def check(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if should_stop and should_stop():
            raise Stopped("stopped while making images")
        return values

    arguments: dict[str, Any] = {
        "prompt_embeds": positive.embeds,
        "negative_prompt_embeds": negative.embeds,
        "num_inference_steps": settings.steps,
        "guidance_scale": settings.guidance,
        "width": settings.width or parts.native_size,
        "height": settings.height or parts.native_size,
        "generator": [generator("image", seed) for seed in seeds],
        "output_type": "latent",
        "callback_on_step_end": check,
    }
    if positive.pooled is not None:
        arguments["pooled_prompt_embeds"] = positive.pooled
        arguments["negative_pooled_prompt_embeds"] = negative.pooled
    if parts.is_inpainting:
        arguments |= _blank_canvas(arguments["width"], arguments["height"], count)
    latents: Tensor = pipeline(**arguments).images
    return latents


def _half(values: Tensor | None, part: slice) -> Tensor | None:
    return None if values is None else values[part]


def _blank_canvas(width: int, height: int, count: int) -> dict[str, Any]:
    """An inpainting model draws a whole picture when everything is masked."""
    return {
        "image": [Image.new("RGB", (width, height), (127, 127, 127))] * count,
        "mask_image": [Image.new("L", (width, height), 255)] * count,
        "strength": 1.0,
    }


def decode(parts: Components, latents: Tensor) -> list[Image.Image]:
    """Pictures of scaled latents ``[batch, 4, height, width]``, in the autoencoder's precision.

    Raises:
        UserError: a picture holds NaN or infinity; as an image it would be black.
    """
    config = parts.vae.config
    parameter = next(parts.vae.parameters())
    values = latents.to(device=parameter.device, dtype=parameter.dtype)
    values = values / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    # SDXL's autoencoder makes NaN of some pictures in fp16, whatever surrounds this call.
    with torch.autocast(parameter.device.type, enabled=False):
        pixels = parts.vae.decode(values, return_dict=False)[0].float()
    if not bool(pixels.isfinite().all()):
        raise UserError(
            "the base made an image of NaN or infinity",
            where=parts.source,
            do="Try another precision, or less weight for adapters; the model may be damaged.",
        )
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
