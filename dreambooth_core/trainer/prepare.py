"""What is made before the first step: class images, encoded images and texts.

One network after another comes to the device, and what is cached leaves: they need not fit there
side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor

from dreambooth_core.data.cache import (
    Cache,
    DiskStore,
    LatentCache,
    MemoryStore,
    NoStore,
    Store,
    TextCache,
)
from dreambooth_core.data.concepts import Concept
from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import BatchPlan, Slot
from dreambooth_core.data.prior import (
    ClassImages,
    batches_of,
    find_class_images,
    make_missing,
    recipe_of,
)
from dreambooth_core.devices import Precision, make_precision
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.components import Components, config_of
from dreambooth_core.families.options import SCHEDULERS
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.objective.objective import Objective
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.best import Judge
from dreambooth_core.trainer.kept import Kept
from dreambooth_core.trainer.placement import Placement
from dreambooth_core.trainer.references import Answers, answer_of
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.saving import Context

T = TypeVar("T")

CACHE_FOLDER = ".cache"
"""Where the disk cache lies beside the runs."""
CLASS_FOLDER = ".class_images"
"""Where class images are kept beside the runs: a dot, so that it is not taken for a run."""
TEXT_CACHE_LIMIT = 256 * 1024 * 1024
"""Bytes of kept embeddings in memory; with shuffled tags there is no end of captions."""
NO_MEANING = frozenset({"architectures", "dtype", "torch_dtype", "transformers_version"})
"""What a text encoder's configuration says without changing what a caption becomes."""


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
    kept_in = Path(prior.folder) if prior.folder else Path(config.run.output) / CLASS_FOLDER
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


class Preparation:
    """Makes what a run needs before its first step.

    Args:
        run: who shares the work, is told how far it is, and asks for a stop.
        place: puts the base's networks where they are needed.
        kept: what this process has made for the run before.
    """

    def __init__(self, run: Context, place: Placement, kept: Kept) -> None:
        self.place, self.kept, self.saver = place, kept, run.saver
        self.config, self.parts, self.precision = place.config, place.parts, place.precision
        self.processes, self.reporter, self.asked = run.processes, run.reporter, run.asked

    def stop_here(self) -> None:
        """Raises ``Stopped``, in all processes, if the user asked for it while models loaded."""
        with self.processes.together():
            if self.asked.stops():
                raise Stopped("stopped before training began")

    def warn_of(self, items: Items) -> None:
        """Warns of what is unusual about the images, their captions and the base."""
        for concept in items.concepts:
            for skipped in concept.inventory.skipped:
                self.reporter.warn(f"{skipped.name} is skipped: {skipped.reason}")
            for warning in concept.inventory.warnings:
                self.reporter.warn(warning)
        for warning in (*items.warnings(), *self.parts.family.warnings(self.parts)):
            self.reporter.warn(warning)

    def class_images(self, concepts: list[Concept]) -> list[Concept]:
        """The concepts with all their class images, the missing ones made by the base, before any
        weight is rounded for the run where they are to be made in another precision.

        Raises:
            UserError: as :func:`class_images`.
            Stopped: the user asked; what was made stays and is not made again.
        """
        config, parts = self.config, self.parts
        if not config.prior.makes_images:
            return concepts
        images = image_precision(config, self.precision)
        weights = images.dtype if images is self.precision else torch.float32
        states = [class_images(config, concept, parts.fingerprint) for concept in concepts]
        # All must have looked before one makes any, or each would share out another list.
        self.processes.wait()
        size, share = config.prior.batch_size, (self.processes.rank, self.processes.count)
        total = sum(
            len(set(state.missing).intersection(batch))
            for state in states
            for batch in batches_of(state, size, *share)
        )
        done = 0
        with self.processes.together(), self.place.all(images, weights):
            for state in states:
                done += make_missing(
                    state,
                    self._maker(state, images),
                    batch_size=size,
                    rank=share[0],
                    processes=share[1],
                    progress=self._progress("class_images", before=done, total=total),
                    stop=self.asked.stops,
                    save=lambda write: self.saver("a class image", write),
                )
        found = []
        for concept in concepts:
            state = class_images(config, concept, parts.fingerprint)
            for warning in state.inventory.warnings:
                self.reporter.warn(warning)
            found.append(replace(concept, class_inventory=state.inventory))
        return found

    def _maker(
        self, state: ClassImages, precision: Precision
    ) -> Callable[[list[str], list[int]], list[Image.Image]]:
        recipe = state.recipe
        settings = SamplingSettings(
            steps=recipe.steps,
            guidance=recipe.guidance,
            scheduler=recipe.scheduler,
            width=recipe.width,
            height=recipe.height,
            negative_prompt=recipe.negative_prompt,
            batch_size=self.config.prior.batch_size,
        )

        def make(prompts: list[str], seeds: list[int]) -> list[Image.Image]:
            with precision.autocast():
                return generate(self.parts, prompts, seeds, settings, should_stop=self.asked.stops)

        return make

    def latents(self, items: Items, plan: BatchPlan, held_out: Items | None) -> LatentCache:
        """The images as latents, all of them where that has an end; the autoencoder leaves then.

        Raises:
            Stopped: the user asked for it.
        """
        parts, data = self.parts, self.config.data

        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            parameter = next(parts.vae.parameters())
            pixels = pixels.to(parameter.device, parameter.dtype)
            return parts.family.encode_pixels(parts, pixels)

        parts.vae.to(self.precision.device)
        self.place.attend(parts.vae, torch.float32)
        cache = LatentCache(
            encode,
            fingerprint(parts.vae),
            self._store("images") if data.has_finite_views else NoStore(),
            pixels=items.pixels,
            recipe=items.recipe,
            batch_size=data.cache_batch_size,
        )
        if data.has_finite_views and data.cache != "none":
            views = items.views(plan)
            if held_out is not None:
                views += held_out.views(held_out.plan(batch_size=1))
            self._fill(cache, self._shared(views), "latents")
            if not parts.is_inpainting:
                parts.vae.to("cpu")
        return cache

    def texts(self, images: Sequence[Items | None], *, trained: bool) -> TextCache | None:
        """The captions as conditioning, and the text encoders leave; None where they stay, because
        they are trained or nothing is cached.

        Raises:
            Stopped: the user asked for it.
        """
        parts = self.parts
        stay = trained or self.config.data.cache == "none"
        for name in parts.text_models:
            self.place.bring(name, streams=not stay)
        if stay:
            return None
        streams = [self.place.streaming(name) for name in parts.text_models]
        cache = TextCache(
            lambda captions: encode_each(parts, captions),
            text_fingerprint(parts),
            self._store("captions", TEXT_CACHE_LIMIT),
        )
        captions = [items.all_captions() for items in images if items is not None]
        if None not in captions:
            self._fill(cache, [text for some in captions for text in some or ()], "texts")
        for stream in streams:
            if stream is not None:
                stream.close()
        for encoder in parts.text_encoders:
            encoder.to("cpu")
        return cache

    def answers(
        self, samples: Samples, objective: Objective, wanted: Sequence[Slot]
    ) -> Answers | None:
        """What the base answers to slots that are kept; None where there are none.

        Raises:
            Stopped: the user asked for it; what is on the disk is not asked again.
        """
        if not wanted:
            return None
        config, parts = self.config, self.parts
        about = (
            asdict(config.objective),
            (parts.clip_skip, parts.max_prompt_chunks, parts.guidance),
            (str(self.precision.dtype), config.run.seed, samples.items.recipe),
        )
        cache = Answers(
            partial(answer_of, samples, objective),
            f"{parts.fingerprint} {json.dumps(about, sort_keys=True)}",
            self._store("answers") if config.data.cache == "disk" else MemoryStore(),
            items=samples.items,
        )
        with self.place.streamed():
            self._fill(cache, self._shared(wanted), "answers")
        return cache

    def judge(self, items: Items) -> Judge | None:
        """What compares images at each save, while the models are still the base; None where
        that is not asked for, or there are no encoders."""
        config = self.config
        wanted = config.seeks_best and config.save.best_by == "images"
        if not (wanted and self.processes.is_main):
            return None
        try:
            with self.place.streamed():
                return Judge(config, self.parts, self.precision, items)
        except UserError as error:
            self.reporter.warn(f"images are not judged: {error.line}")
            return None

    def _store(self, things: str, limit: int | None = None) -> Store:
        """Where ``data.cache`` says that encoded things lie."""
        data = self.config.data
        if data.cache == "disk":
            return DiskStore(data.cache_folder or Path(self.config.run.output) / CACHE_FOLDER)
        return self.kept.store(things, limit) if data.cache == "memory" else NoStore()

    def _shared(self, wanted: Sequence[T]) -> Sequence[T]:
        """This process's part: a cache on disk is filled by all, one in memory by each for
        itself."""
        sharers = self.processes.count if self.config.data.cache == "disk" else 1
        return wanted[self.processes.rank % sharers :: sharers]

    def _fill(self, cache: Cache[T], wanted: Sequence[T], stage: str) -> None:
        with self.processes.together():
            cache.fill(wanted, progress=self._progress(stage), stop=self.asked.stops)

    def _progress(
        self, stage: str, *, before: int = 0, total: int | None = None
    ) -> Callable[[int, int], None]:
        def tell(done: int, own: int) -> None:
            steps = own if total is None else total
            self.reporter.emit("progress", stage=stage, step=before + done, steps=steps)

        return tell


def text_fingerprint(parts: Components) -> str:
    """Differs where a caption is encoded in another way: by other weights, or by the same ones with
    other settings (Z-Image and Flux.2 Klein 4B read different layers of one Qwen3)."""
    configs = [
        {name: value for name, value in config_of(encoder).items() if name not in NO_MEANING}
        for encoder in parts.text_encoders
    ]
    told = json.dumps(configs, sort_keys=True, default=str)
    settings = (parts.family.name, told, str(parts.clip_skip), str(parts.max_prompt_chunks))
    return fingerprint(*parts.text_encoders, also=settings)


def encode_each(parts: Components, captions: Sequence[str]) -> list[dict[str, Tensor]]:
    """Conditioning of each caption ``[1, tokens, width]`` as plain tensors, for the cache."""
    found = []
    for caption in captions:
        conditioning = parts.family.encode(parts, [caption]).as_dict()
        found.append({name: _kept(tensor) for name, tensor in conditioning.items()})
    return found


def _kept(tensor: Tensor) -> Tensor:
    """In fp32; a mask stays what it is, since some denoisers add one of numbers to the scores."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu()
