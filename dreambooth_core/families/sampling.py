"""Generating images with loaded components, through the family's diffusers pipeline."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from dreambooth_core.devices import is_sharded
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_sampling import Like
from dreambooth_core.memory.streaming import Streaming
from dreambooth_core.randomness import generator

log = logging.getLogger(__name__)


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
    like: Like | None = None
    """A host whose images are made, in place of the pipeline's."""


def generate(
    parts: Components,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    *,
    should_stop: Callable[[], bool] | None = None,
    device: torch.device | None = None,
) -> list[Image.Image]:
    """One image for each prompt and seed.

    An image depends on its prompt, seed and settings, not on which others are made beside it.

    Args:
        should_stop: asked at every denoising step.
        device: the denoiser's, where text encoders and autoencoder are only while they work; None
            where all of them are where they should be.

    Raises:
        Stopped: ``should_stop`` said so.
    """
    pipeline = None
    if settings.like is not None:
        settings.like.check(parts)
    else:
        pipeline = build_pipeline(parts, settings.scheduler)
    if device is not None and pipeline is not None:
        # Else it takes the place of its first network for that of all.
        kind = type(pipeline)
        pipeline.__class__ = type(kind.__name__, (kind,), {"_execution_device": device})
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
                    pipeline, parts, prompts[chunk], seeds[chunk], settings, should_stop, device
                )
                with visiting(parts, [parts.vae], device):
                    images += decode(parts, latents, cut=settings.like is not None)
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)
    return images


@contextmanager
def visiting(
    parts: Components, networks: Sequence[nn.Module], device: torch.device | None
) -> Iterator[None]:
    """Inside, networks of a base can compute on a device, if one is given; afterwards each is where
    it was. Beside a denoiser that is streamed those that come from RAM are streamed too; one in
    pieces goes there by itself."""
    networks = [n for n in networks if not is_sharded(next(n.parameters()))]
    homes = [next(network.parameters()).device for network in networks]
    streams = []
    try:
        for network, home in zip(networks, homes, strict=True):
            blocks = parts.family.blocks(network)
            if device is not None and parts.streaming and blocks and home.type == "cpu":
                streams.append(Streaming(network, blocks, device))
            elif device is not None:
                network.to(device)
        yield
    finally:
        for stream in streams:
            stream.close()
        for network, home in zip(networks, homes, strict=True):
            network.to(home)


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
    device: torch.device | None,
) -> Tensor:
    def check(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if should_stop and should_stop():
            raise Stopped("stopped while making images")
        return values

    width = settings.width or parts.native_size
    height = settings.height or parts.native_size
    if settings.like is not None:
        with visiting(parts, parts.text_encoders, device):
            return settings.like.denoise(
                parts,
                prompts,
                seeds,
                negative=settings.negative_prompt,
                guidance=settings.guidance,
                steps=settings.steps,
                size=(height, width),
                should_stop=should_stop,
            )
    with visiting(parts, parts.text_encoders, device):
        texts = parts.family.sampling_arguments(
            parts, prompts, settings.negative_prompt, settings.guidance
        )
    arguments: dict[str, Any] = {
        **texts,
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
    beside = [*parts.companions.values(), *([parts.vae] if parts.is_inpainting else [])]
    with visiting(parts, beside, device):
        made: Tensor = pipeline(**arguments).images
    return parts.family.latents_of(parts, made, height, width)


def _blank_canvas(width: int, height: int, count: int) -> dict[str, Any]:
    """An inpainting model draws a whole image when everything is masked."""
    return {
        "image": [Image.new("RGB", (width, height), (127, 127, 127))] * count,
        "mask_image": [Image.new("L", (width, height), 255)] * count,
        "strength": 1.0,
    }


def _decoded(parts: Components, latents: Tensor) -> Tensor:
    """Images in [-1, 1]; in tiles, one image at a time, where there is no memory for more."""
    try:
        return parts.family.decode_pixels(parts, latents)
    except torch.OutOfMemoryError:
        log.warning("the images are decoded in tiles: there is no memory for a whole one")
    if latents.device.type == "cuda":
        torch.cuda.empty_cache()
    parts.vae.enable_tiling()
    try:
        return torch.cat([parts.family.decode_pixels(parts, one) for one in latents.split(1)])
    finally:
        parts.vae.disable_tiling()


def decode(parts: Components, latents: Tensor, *, cut: bool = False) -> list[Image.Image]:
    """Images of scaled latents ``[batch, *latent_shape]``, in the autoencoder's precision.

    Args:
        cut: whether fractions of a byte are cut off, as the hosts do, and not rounded.

    Raises:
        UserError: an image holds NaN or infinity; as an image it would be black.
    """
    parameter = next(parts.vae.parameters())
    values = latents.to(device=parameter.device, dtype=parameter.dtype)
    # SDXL's autoencoder makes NaN of some images in fp16, whatever surrounds this call.
    with torch.autocast(parameter.device.type, enabled=False):
        pixels = _decoded(parts, parts.family.unscaled(parts, values)).float()
    if not bool(pixels.isfinite().all()):
        raise UserError(
            "the base made an image of NaN or infinity",
            where=parts.source,
            do="Try another precision, or less weight for adapters; the model may be damaged.",
        )
    pixels = (pixels / 2 + 0.5).clamp(0, 1) * 255
    pixels = (pixels if cut else pixels.round()).to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(array) for array in arrays]
