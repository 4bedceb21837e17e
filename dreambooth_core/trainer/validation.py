"""Validation images: what the present weights draw, shown while a run goes.

They come from seeds of their own, so that training is not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image

from dreambooth_core.data.decode import encode
from dreambooth_core.data.items import Items
from dreambooth_core.devices import Precision
from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_sampling import SAMPLERS, Like
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.options.run import ValidationOptions
from dreambooth_core.trainer.saving import Context


def sampling_settings(
    options: ValidationOptions, parts: Components, default_size: tuple[int, int]
) -> SamplingSettings:
    """How the validation images are made; ``default_size`` is (height, width).

    Raises:
        UserError: images of that size, or of that host, cannot be made.
    """
    height, width = (options.size, options.size) if options.size else default_size
    step = max(parts.family.size_step, parts.latent_scale)
    if height % step or width % step:
        raise UserError(
            f"{height} is not a multiple of {step}",
            where="validation.size",
            do=f"Try {round(height / 64) * 64 or 64}.",
        )
    try:
        parts.family.latent_shape(parts.configs, height, width)
    except UserError as error:
        raise UserError(error.what, where="validation.size", do=error.do) from error
    like = None
    if options.like != "none":
        try:
            like = Like(options.like, options.scheduler)
            like.check(parts)
        except UserError as error:
            here = "Set it to none"
            if options.scheduler not in SAMPLERS:
                here += f", or validation.scheduler to one of {', '.join(SAMPLERS)}"
            raise UserError(error.what, where="validation.like", do=f"{here}.") from error
    return SamplingSettings(
        steps=options.num_inference_steps,
        guidance=options.guidance_scale,
        scheduler=options.scheduler,
        width=width,
        height=height,
        negative_prompt=options.negative_prompt,
        like=like,
    )


def drawn(
    parts: Components,
    precision: Precision,
    prompts: list[str],
    seeds: list[int],
    settings: SamplingSettings,
    should_stop: Callable[[], bool] | None,
) -> list[Image.Image]:
    """Images of the present weights; the samplers of a pipeline may draw from torch's global
    generator, which is left as it was."""
    with torch.random.fork_rng(devices=[]), precision.autocast():
        return generate(
            parts, prompts, seeds, settings, should_stop=should_stop, device=precision.device
        )


@dataclass
class Validation:
    """Makes and writes the validation images of a run, in the size of its first image unless the
    options say another."""

    run: Context
    parts: Components
    precision: Precision
    items: Items

    def prompts(self, *, asked: bool = False) -> list[str]:
        """What is shown: the options' prompts; where there are none and somebody asks to see
        images, what is trained on."""
        wanted = self.run.config.validation.prompts
        if wanted or not asked:
            return wanted
        return [next(iter(self.items.first_captions().values()))]

    def make(
        self, step: int, prompts: list[str], should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Makes all images of a step. A failure is a warning: the run is worth more.

        Raises:
            Stopped: ``should_stop`` said so, asked at each denoising step.
        """
        options, folder, reporter = self.run.config.validation, self.run.folder, self.run.reporter
        said = [prompt for prompt in prompts for _ in range(options.images)]
        seeds = [options.seed + i for _ in prompts for i in range(options.images)]
        reporter.emit("progress", stage="samples", step=0, steps=len(said))
        with reporter.decorative("making the validation images"):
            settings = sampling_settings(options, self.parts, self.items.entries[0].size)
            images = drawn(self.parts, self.precision, said, seeds, settings, should_stop)
            made = enumerate(zip(images, said, seeds, strict=True))
            # Of several processes, the main one alone writes.
            for index, (image, prompt, seed) in made if reporter.enabled else ():
                path = folder.samples / f"step-{step:06d}-{index:02d}.png"
                write_bytes(path, encode(image))
                reporter.image(f"validation/{index:02d} {prompt}", image, step)
                told = {"step": step, "prompt": prompt, "seed": seed}
                reporter.emit("sample", path=folder.relative(path), **told)
        reporter.emit("progress", stage="samples", step=len(said), steps=len(said))
