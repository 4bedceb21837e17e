"""Class images before training: those that are missing are made by the untrained base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from dreambooth_core.data.concepts import Concept
from dreambooth_core.data.prior import (
    ClassImages,
    find_class_images,
    make_missing,
    recipe_of,
)
from dreambooth_core.families.base import Components
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.precision import Precision
from dreambooth_core.trainer.processes import Processes
from dreambooth_core.trainer.report import Reporter

FOLDER = ".class_images"
"""Where class images are kept beside the runs: a dot, so that it is not taken for a run."""


def class_images(config: TrainConfig, concept: Concept, base_fingerprint: str) -> ClassImages:
    """Which of a concept's class images are there and which are missing."""
    prior = config.prior
    recipe = recipe_of(concept, prior, config.data, base_fingerprint)
    kept_in = Path(prior.folder) if prior.folder else Path(config.run.output) / FOLDER
    return find_class_images(
        recipe,
        concept.class_images_wanted,
        kept_in=kept_in,
        own_folder=concept.options.class_images or None,
    )


def with_class_images(
    config: TrainConfig,
    concepts: list[Concept],
    parts: Components,
    precision: Precision,
    processes: Processes,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> list[Concept]:
    """The concepts with all their class images, the missing ones made by ``parts``.

    Raises:
        Stopped: the user asked; what was made stays and is not made again.
    """
    if not config.prior.enabled:
        return concepts
    states = [class_images(config, concept, parts.fingerprint) for concept in concepts]
    # All must have looked before one makes any, or each would share out another list.
    processes.wait()
    total = sum(len(state.missing[processes.rank :: processes.count]) for state in states)
    done = 0
    for state in states:

        def progress(made: int, _: int, before: int = done) -> None:
            reporter.emit("progress", stage="class_images", step=before + made, steps=total)

        done += make_missing(
            state,
            _maker(config, state, parts, precision, should_stop),
            batch_size=config.prior.batch_size,
            rank=processes.rank,
            processes=processes.count,
            progress=progress,
            stop=should_stop,
        )
    processes.wait()
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
        scheduler=recipe.scheduler or SamplingSettings.scheduler,
        width=recipe.width,
        height=recipe.height,
        negative_prompt=recipe.negative_prompt,
        batch_size=config.prior.batch_size,
    )

    def make(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        with precision.autocast():
            return generate(parts, prompts, seeds, settings, should_stop=should_stop)

    return make
