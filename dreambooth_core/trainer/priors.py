"""Class images before training: those that are missing are made by the untrained base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dreambooth_core.data.concepts import Concept
from dreambooth_core.data.prior import (
    ClassImages,
    batches_of,
    find_class_images,
    make_missing,
    recipe_of,
)
from dreambooth_core.devices import Precision, make_precision
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.families.sd import SCHEDULERS
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.asked import Asked
from dreambooth_core.trainer.processes import Processes
from dreambooth_core.trainer.report import Reporter
from dreambooth_core.trainer.saving import Saver

FOLDER = ".class_images"
"""Where class images are kept beside the runs: a dot, so that it is not taken for a run."""


def class_images(config: TrainConfig, concept: Concept, base_fingerprint: str) -> ClassImages:
    """Which of a concept's class images are there and which are missing.

    Raises:
        UserError: they cannot be made as asked, or the folder cannot be used.
    """
    prior = config.prior
    if prior.scheduler and prior.scheduler not in SCHEDULERS:
        raise UserError(
            f"there is no scheduler {prior.scheduler!r}",
            where="prior.scheduler",
            do=f"Choose from {', '.join(SCHEDULERS)}, or leave it empty for the base's own.",
        )
    recipe = recipe_of(concept, prior, config.data, base_fingerprint)
    kept_in = Path(prior.folder) if prior.folder else Path(config.run.output) / FOLDER
    return find_class_images(
        recipe,
        concept.class_images_wanted,
        kept_in=kept_in,
        own_folder=concept.options.class_images or None,
    )


def image_precision(config: TrainConfig, run: Precision) -> Precision:
    """The precision in which class images are made; the run's where it is the same.

    Raises:
        UserError: the device cannot compute in it.
    """
    prior = config.prior
    if not prior.makes_images or prior.precision == "auto":
        return run
    name = "no" if prior.precision == "fp32" else prior.precision
    made = make_precision(
        name, run.device, tf32=config.memory.tf32, where=f"prior.precision: {prior.precision}"
    )
    return run if made.dtype == run.dtype else made


def with_class_images(
    config: TrainConfig,
    concepts: list[Concept],
    parts: Components,
    precision: Precision,
    processes: Processes,
    reporter: Reporter,
    asked: Asked,
    saver: Saver,
) -> list[Concept]:
    """The concepts with all their class images, the missing ones made by ``parts``.

    Args:
        precision: of :func:`image_precision`.

    Raises:
        UserError: as :func:`class_images`.
        Stopped: the user asked; what was made stays and is not made again.
    """
    if not config.prior.makes_images:
        return concepts
    states = [class_images(config, concept, parts.fingerprint) for concept in concepts]
    # All must have looked before one makes any, or each would share out another list.
    processes.wait()
    size, share = config.prior.batch_size, (processes.rank, processes.count)
    total = sum(
        len(set(state.missing).intersection(batch))
        for state in states
        for batch in batches_of(state, size, *share)
    )
    done = 0
    with processes.together():
        for state in states:

            def progress(made: int, _: int, before: int = done) -> None:
                reporter.emit("progress", stage="class_images", step=before + made, steps=total)

            done += make_missing(
                state,
                _maker(config, state, parts, precision, asked.stops),
                batch_size=size,
                rank=processes.rank,
                processes=processes.count,
                progress=progress,
                stop=asked.stops,
                save=lambda write: saver("a class image", write),
            )
    found = []
    for concept in concepts:
        state = class_images(config, concept, parts.fingerprint)
        for warning in state.inventory.warnings:
            reporter.warn(warning)
        found.append(concept.with_class_pictures(state.inventory))
    return found


def _maker(
    config: TrainConfig,
    state: ClassImages,
    parts: Components,
    precision: Precision,
    should_stop: Callable[[], bool],
) -> Callable[[list[str], list[int]], list[Image.Image]]:
    recipe = state.recipe
    settings = SamplingSettings(
        steps=recipe.steps,
        guidance=recipe.guidance,
        scheduler=recipe.scheduler,
        width=recipe.width,
        height=recipe.height,
        negative_prompt=recipe.negative_prompt,
        batch_size=config.prior.batch_size,
    )

    def make(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        with precision.autocast():
            return generate(parts, prompts, seeds, settings, should_stop=should_stop)

    return make
