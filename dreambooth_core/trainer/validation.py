"""Images made during the run, from seeds of their own, so that training is not disturbed."""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from PIL import Image

from dreambooth_core.devices import Precision
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.storage import write_bytes
from dreambooth_core.jobs import RunFolder
from dreambooth_core.options.run import ValidationOptions
from dreambooth_core.trainer.report import Reporter


def sampling_settings(
    options: ValidationOptions, parts: Components, default_size: tuple[int, int]
) -> SamplingSettings:
    """How the validation images are made; ``default_size`` is (height, width).

    Raises:
        UserError: images of that size cannot be made.
    """
    height, width = (options.size, options.size) if options.size else default_size
    step = max(parts.family.size_step, parts.latent_scale)
    if height % step or width % step:
        raise UserError(
            f"{height} is not a multiple of {step}",
            where="validation.size",
            do=f"Try {round(height / 64) * 64 or 64}.",
        )
    return SamplingSettings(
        steps=options.num_inference_steps,
        guidance=options.guidance_scale,
        scheduler=options.scheduler,
        width=width,
        height=height,
        negative_prompt=options.negative_prompt,
    )


class Validation:
    """Makes and writes the validation images of a run.

    Raises:
        UserError: as :func:`sampling_settings`.
    """

    def __init__(
        self,
        options: ValidationOptions,
        parts: Components,
        precision: Precision,
        folder: RunFolder,
        reporter: Reporter,
        default_size: tuple[int, int],
    ) -> None:
        self.options = options
        self.parts = parts
        self.precision = precision
        self.folder = folder
        self.reporter = reporter
        self.settings = sampling_settings(options, parts, default_size)

    @property
    def count(self) -> int:
        """How many images are made at a step."""
        return len(self.options.prompts) * self.options.images

    def make(self, step: int, should_stop: Callable[[], bool] | None = None) -> None:
        """Makes all images of a step. A failure is a warning: the run is worth more.

        Raises:
            Stopped: ``should_stop`` said so, asked at each denoising step.
        """
        prompts = [p for p in self.options.prompts for _ in range(self.options.images)]
        seeds = [
            self.options.seed + i for _ in self.options.prompts for i in range(self.options.images)
        ]
        if not prompts:
            return
        # The samplers of the pipeline may draw from torch's global generator.
        state = torch.get_rng_state()
        try:
            with self.reporter.decorative("making the validation images"):
                with self.precision.autocast():
                    images = generate(
                        self.parts,
                        prompts,
                        seeds,
                        self.settings,
                        should_stop=should_stop,
                        device=self.precision.device,
                    )
                # Of several processes, the main one alone writes.
                for index, image in enumerate(images if self.reporter.enabled else ()):
                    self._show(step, index, prompts[index], seeds[index], image)
        finally:
            torch.set_rng_state(state)

    def _show(self, step: int, index: int, prompt: str, seed: int, image: Image.Image) -> None:
        path = self.folder.samples / f"step-{step:06d}-{index:02d}.png"
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        write_bytes(path, buffer.getvalue())
        self.reporter.picture(f"validation/{index:02d} {prompt}", image, step)
        self.reporter.emit(
            "sample", path=self.folder.relative(path), step=step, prompt=prompt, seed=seed
        )
