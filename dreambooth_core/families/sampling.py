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
from dreambooth_core.randomness import generator


@dataclass(frozen=True)
class SamplingSettings:
    """How images are made."""

    steps: int = 25
    guidance: float = 7.0
    scheduler: str = "ddim"
    """A name of the family's ``schedulers``; empty for the base's own."""
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
    models = parts.networks
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

    name, config = parts.family.scheduler(parts, scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = parts.family.pipeline_modules(parts)
        modules["scheduler"] = getattr(diffusers, name).from_config(config)
        pipeline = parts.family.pipeline_class(parts)(**modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _denoise(
    pipeline: Any,
    parts: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    should_stop: Callable[[], bool] | None,
) -> Tensor:
    def check(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if should_stop and should_stop():
            raise Stopped("stopped while making images")
        return values

    width = settings.width or parts.native_size
    height = settings.height or parts.native_size
    arguments: dict[str, Any] = {
        **parts.family.sampling_arguments(
            parts, prompts, settings.negative_prompt, settings.guidance
        ),
        "num_inference_steps": settings.steps,
        "width": width,
        "height": height,
        "generator": [generator("image", seed) for seed in seeds],
        "output_type": "latent",
        "callback_on_step_end": check,
    }
    if parts.is_inpainting:
        arguments |= _blank_canvas(width, height, len(prompts))
    parts.family.readied(pipeline, height, width)
    made: Tensor = pipeline(**arguments).images
    return parts.family.latents_of(parts, made, height, width)


def _blank_canvas(width: int, height: int, count: int) -> dict[str, Any]:
    """An inpainting model draws a whole image when everything is masked."""
    return {
        "image": [Image.new("RGB", (width, height), (127, 127, 127))] * count,
        "mask_image": [Image.new("L", (width, height), 255)] * count,
        "strength": 1.0,
    }


def decode(parts: Components, latents: Tensor) -> list[Image.Image]:
    """Images of scaled latents ``[batch, *latent_shape]``, in the autoencoder's precision.

    Raises:
        UserError: an image holds NaN or infinity; as an image it would be black.
    """
    parameter = next(parts.vae.parameters())
    values = latents.to(device=parameter.device, dtype=parameter.dtype)
    # SDXL's autoencoder makes NaN of some images in fp16, whatever surrounds this call.
    with torch.autocast(parameter.device.type, enabled=False):
        pixels = parts.family.decode_pixels(parts, parts.family.unscaled(parts, values)).float()
    if not bool(pixels.isfinite().all()):
        raise UserError(
            "the base made an image of NaN or infinity",
            where=parts.source,
            do="Try another precision, or less weight for adapters; the model may be damaged.",
        )
    pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
