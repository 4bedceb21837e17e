"""Validation images: what the present weights draw, shown while a run goes.

They come from seeds of their own, so that training is not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image

from dreambooth_core.data.decode import encode
from dreambooth_core.data.items import Items
from dreambooth_core.devices import Precision
from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.host_sampling import SAMPLERS, Like
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.jobs import RunFolder
from dreambooth_core.options.run import ValidationOptions
from dreambooth_core.trainer.reports import Reporter


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
    return SamplingSettings(
        steps=options.num_inference_steps,
        guidance=options.guidance_scale,
        scheduler=options.scheduler,
        width=width,
        height=height,
        negative_prompt=options.negative_prompt,
        like=_like(options, parts),
    )


def _like(options: ValidationOptions, parts: Components) -> Like | None:
    """The host whose images are made, if any is. Raises ``UserError`` where they cannot be."""
    if options.like == "none":
        return None
    try:
        found = Like(options.like, options.scheduler)
        found.check(parts)
    except UserError as error:
        here = "Set it to none"
        if options.scheduler not in SAMPLERS:
            here += f", or validation.scheduler to one of {', '.join(SAMPLERS)}"
        raise UserError(error.what, where="validation.like", do=f"{here}.") from error
    return found


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
    state = torch.get_rng_state()
    try:
        with precision.autocast():
            return generate(
                parts, prompts, seeds, settings, should_stop=should_stop, device=precision.device
            )
    finally:
        torch.set_rng_state(state)


class Validation:
    """Makes and writes the validation images of a run, in the size of its first image unless the
    options say another."""

    def __init__(
        self,
        options: ValidationOptions,
        parts: Components,
        precision: Precision,
        folder: RunFolder,
        reporter: Reporter,
        items: Items,
    ) -> None:
        self.options = options
        self.parts = parts
        self.precision = precision
        self.folder = folder
        self.reporter = reporter
        self.items = items

    def prompts(self, *, asked: bool = False) -> list[str]:
        """What is shown: the options' prompts; where there are none and somebody asks to see
        images, what is trained on."""
        if self.options.prompts or not asked:
            return self.options.prompts
        return [next(iter(self.items.first_captions().values()))]

    def make(
        self, step: int, prompts: list[str], should_stop: Callable[[], bool] | None = None
    ) -> None:
        """Makes all images of a step. A failure is a warning: the run is worth more.

        Raises:
            Stopped: ``should_stop`` said so, asked at each denoising step.
        """
        each = range(self.options.images)
        wanted = [(prompt, self.options.seed + i) for prompt in prompts for i in each]
        self.reporter.emit("progress", stage="samples", step=0, steps=len(wanted))
        with self.reporter.decorative("making the validation images"):
            settings = sampling_settings(self.options, self.parts, self.items.entries[0].size)
            said, seeds = [prompt for prompt, _ in wanted], [seed for _, seed in wanted]
            images = drawn(self.parts, self.precision, said, seeds, settings, should_stop)
            # Of several processes, the main one alone writes.
            for index, image in enumerate(images if self.reporter.enabled else ()):
                self._show(step, index, said[index], seeds[index], image)
        self.reporter.emit("progress", stage="samples", step=len(wanted), steps=len(wanted))

    def _show(self, step: int, index: int, prompt: str, seed: int, image: Image.Image) -> None:
        path = self.folder.samples / f"step-{step:06d}-{index:02d}.png"
        write_bytes(path, encode(image))
        self.reporter.image(f"validation/{index:02d} {prompt}", image, step)
        self.reporter.emit(
            "sample", path=self.folder.relative(path), step=step, prompt=prompt, seed=seed
        )
