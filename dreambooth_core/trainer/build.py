"""From a configuration to a session that can train, in the order in which memory allows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.data.concepts import Concept
from dreambooth_core.data.items import Items
from dreambooth_core.data.latents import LatentCache
from dreambooth_core.data.plan import BatchPlan
from dreambooth_core.data.store import NoStore, Store, make_store
from dreambooth_core.data.texts import TextCache
from dreambooth_core.devices import Precision, make_precision
from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.base import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.jobs import RunFolder
from dreambooth_core.memory.streaming import Streaming
from dreambooth_core.methods.base import Trainable, method_for
from dreambooth_core.methods.quantized import quantize
from dreambooth_core.methods.table import METHODS
from dreambooth_core.optim.ema import Ema
from dreambooth_core.optim.stepper import Stepper
from dreambooth_core.trainer.asked import Asked
from dreambooth_core.trainer.best import HeldOut
from dreambooth_core.trainer.decide import Decision, parameter_groups
from dreambooth_core.trainer.judge import Judge
from dreambooth_core.trainer.priors import image_precision, with_class_images
from dreambooth_core.trainer.processes import Processes
from dreambooth_core.trainer.report import Reporter
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.saving import Saver
from dreambooth_core.trainer.session import Session
from dreambooth_core.trainer.sharding import Shards, shard
from dreambooth_core.trainer.step import StepComputer
from dreambooth_core.trainer.texts import TextSource, encode_each
from dreambooth_core.trainer.validation import Validation

CACHE_FOLDER = ".cache"
"""Where the disk cache lies beside the runs."""

TEXT_CACHE_LIMIT = 256 * 1024 * 1024
"""Bytes of kept embeddings in memory; with shuffled tags there is no end of captions."""


class Builder:
    """Builds a session step by step; each step says what it needs of those before."""

    def __init__(
        self,
        decision: Decision,
        folder: RunFolder,
        reporter: Reporter,
        processes: Processes,
        asked: Asked,
        saver: Saver,
    ) -> None:
        self.decision = decision
        self.config = decision.config
        self.folder = folder
        self.reporter = reporter
        self.processes = processes
        self.asked = asked
        self.saver = saver

    def build(self) -> Session:
        """The session, at step 0.

        Raises:
            UserError: what could not be told from the files' headers: damaged weights.
            Stopped: the user asked for it.
        """
        config = self.config
        self.reporter.emit("progress", stage="loading")
        concepts = self.decision.concepts
        precision = make_precision(
            config.run.mixed_precision, self.processes.device, tf32=config.memory.tf32
        )
        # A token that is learned was added to those that decided, to try it out.
        learns_token = METHODS[config.method.kind].learns_token
        tokenizers = None if learns_token else self.decision.parts.tokenizers
        parts = load_base(config.base, tokenizers=tokenizers)
        self._stop_here()
        concepts = self._with_class_images(concepts, parts, precision)
        items = Items(concepts, config.data, seed=config.run.seed)
        self._tell_inventory(concepts, items, parts)
        held_out = items.held_out() if config.seeks_best else None
        plan = items.plan(
            batch_size=config.run.batch_size,
            accumulation=config.run.gradient_accumulation_steps,
            processes=self.processes.count,
        )
        method = method_for(config.method, parts)
        # What is trained whole becomes fp32 masters, which rounding now would cost its last bits.
        whole = method.trained_models if METHODS[config.method.kind].trains_base else {}
        for name, model in parts.models.items():
            if name not in whole:
                model.to(precision.dtype)
        for model in parts.companions.values():
            model.to("cpu", precision.dtype)
        # One network after another, and what is cached leaves: they need not fit side by side.
        latents = self._latents(parts, items, plan, precision, held_out)
        texts = self._texts(parts, [items, held_out], precision, trained=method.trains_text)
        sharded = config.run.sharding != "no" and self.processes.count > 1
        denoiser = parts.family.denoiser
        if not sharded:  # in pieces it goes there block by block
            self._on_device(parts, denoiser, precision, streams=True)
        apply_attention(parts.denoiser, config.memory.attention, precision.device, precision.dtype)
        judge = self._judge(parts, precision, held_out or items)
        trainables = method.attach(config.run.seed, precision.trained)
        parts.streaming = self._streaming(parts, denoiser, precision, trained=denoiser in whole)
        if config.memory.gradient_checkpointing:
            for model in method.passed_models:
                _checkpointing(model)
        if config.memory.compile:
            compile_blocks(parts)
        shards: Shards | None = None
        if sharded:
            offload = config.run.sharding == "offload"
            shards = shard(parts, trainables, self.processes, offload=offload)
        total = config.run.steps or config.run.epochs * plan.steps_per_epoch
        stepper, ema = self._optimizer(trainables, total)
        if parts.streaming:
            parts.streaming.with_states_of(stepper.optimizer)
            precision.caches = denoiser not in whole

        def samples_of(images: Items, seed: int) -> Samples:
            source = TextSource(parts, texts)
            device, dtype = precision.device, precision.dtype
            return Samples(parts, images, latents, source, seed=seed, device=device, dtype=dtype)

        samples = samples_of(items, config.run.seed)
        objective = parts.family.objective(config.objective, parts)
        computer = StepComputer(
            parts,
            samples,
            plan,
            objective,
            precision,
            self.processes,
            models=[m for m in method.passed_models if not (shards and m is parts.denoiser)],
            seed=config.run.seed,
            prior_weight=config.prior.loss_weight if config.prior.enabled else 0.0,
            as_base=method.as_base if config.prior.predicts else None,
        )

        def validation(prompts: list[str]) -> Validation:
            return Validation(
                replace(config.validation, prompts=prompts),
                parts,
                precision,
                self.folder,
                self.reporter,
                default_size=items.entries[0].size,
            )

        own = config.validation.prompts
        return Session(
            config=config,
            folder=self.folder,
            reporter=self.reporter,
            asked=self.asked,
            saver=self.saver,
            processes=self.processes,
            precision=precision,
            parts=parts,
            method=method,
            items=items,
            plan=plan,
            samples=samples,
            computer=computer,
            trainables=trainables,
            stepper=stepper,
            ema=ema,
            validation=validation(own) if own else None,
            validation_of=validation,
            shards=shards,
            total_steps=total,
            held_out=None
            if held_out is None
            else HeldOut(
                held_out, samples_of(held_out, 0), objective, precision, config.run.batch_size
            ),
            judge=judge,
        )

    def _judge(self, parts: Components, precision: Precision, items: Items) -> Judge | None:
        """What compares images at each save, while the models are still the base; None where
        that is not asked for, or there are no encoders."""
        config = self.config
        if not (config.seeks_best and config.save.best_by == "images"):
            return None
        if not self.processes.is_main:
            return None
        parts.streaming = self._streaming(parts, parts.family.denoiser, precision)
        try:
            return Judge(config, parts, precision, items)
        except UserError as error:
            self.reporter.warn(f"images are not judged: {error.line}")
            return None
        finally:
            if parts.streaming:
                parts.streaming.close()
                parts.streaming = None

    def _stop_here(self) -> None:
        """Raises ``Stopped``, in all processes, if the user asked for it while models loaded."""
        with self.processes.together():
            if self.asked.stops():
                raise Stopped("stopped before training began")

    def _with_class_images(
        self, concepts: list[Concept], parts: Components, precision: Precision
    ) -> list[Concept]:
        """The concepts with their class images, made before any weight is rounded for the run
        where they are to be made in another precision."""
        if not self.config.prior.makes_images:
            return concepts
        images = image_precision(self.config, precision)
        self._place(parts, images, weights=None if images is precision else torch.float32)
        found = with_class_images(
            self.config,
            concepts,
            parts,
            images,
            self.processes,
            self.reporter,
            self.asked,
            self.saver,
        )
        if parts.streaming:
            parts.streaming.close()
            parts.streaming = None
        return found

    def _place(
        self, parts: Components, precision: Precision, weights: torch.dtype | None = None
    ) -> None:
        """All models on the device, with attention for the computing precision, to make images.
        Frozen weights in that precision; the autoencoder stays in fp32."""
        for name, model in (*parts.models.items(), *parts.companions.items()):
            if name == parts.family.denoiser and self._share > 0:
                model.to(weights or precision.dtype)
                parts.streaming = self._streaming(parts, name, precision)
            else:
                model.to(precision.device, weights or precision.dtype)
        parts.vae.to(precision.device)
        wanted = self.config.memory.attention
        apply_attention(parts.denoiser, wanted, precision.device, precision.dtype)
        apply_attention(parts.vae, wanted, precision.device, torch.float32)

    def _tell_inventory(self, concepts: list[Concept], items: Items, parts: Components) -> None:
        for concept in concepts:
            for skipped in concept.inventory.skipped:
                self.reporter.warn(f"{skipped.name} is skipped: {skipped.reason}")
            for warning in concept.inventory.warnings:
                self.reporter.warn(warning)
        for warning in items.warnings():
            self.reporter.warn(warning)
        for warning in parts.family.warnings(parts):
            self.reporter.warn(warning)

    def _store(self, limit: int | None = None) -> Store:
        data = self.config.data
        folder = Path(data.cache_folder or Path(self.config.run.output) / CACHE_FOLDER)
        return make_store(data.cache, folder, limit)

    @property
    def _sharers(self) -> int:
        """Processes that fill one cache: on disk all, in memory each has its own."""
        return self.processes.count if self.config.data.cache == "disk" else 1

    def _on_device(
        self, parts: Components, name: str, precision: Precision, *, streams: bool = False
    ) -> None:
        """Brings one of the networks to the device, quantised if that is asked. One that will be
        streamed stays in RAM."""
        model, kind = parts.models[name], self.config.memory.quantize
        home = torch.device("cpu") if streams and self._share > 0 else precision.device
        if kind != "no":
            quantize(model, kind, parts.family.whole_in(name), precision.device, home)
        model.to(home)

    @property
    def _share(self) -> float:
        """Of the blocks that lie in RAM."""
        return self.config.memory.share

    def _streaming(
        self, parts: Components, name: str, precision: Precision, *, trained: bool = False
    ) -> Streaming | None:
        """Begins to stream a network, with all that is trained in it, if that is asked."""
        if self._share == 0:
            return None
        model = parts.models[name]
        blocks = parts.family.blocks(model)
        return Streaming(model, blocks, precision.device, share=self._share, trained=trained)

    def _latents(
        self,
        parts: Components,
        items: Items,
        plan: BatchPlan,
        precision: Precision,
        held_out: Items | None,
    ) -> LatentCache:
        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            parameter = next(parts.vae.parameters())
            pixels = pixels.to(parameter.device, parameter.dtype)
            return parts.family.encode_pixels(parts, pixels)

        parts.vae.to(precision.device)
        apply_attention(parts.vae, self.config.memory.attention, precision.device, torch.float32)
        cache = LatentCache(
            encode,
            fingerprint(parts.vae),
            self._store() if plan.is_finite else NoStore(),
            pixels=items.pixels,
            recipe=items.recipe,
            batch_size=self.config.data.cache_batch_size,
        )
        if self._keeps_latents(plan):
            views = items.views(plan)
            if held_out is not None:
                views += held_out.views(held_out.plan(batch_size=1))
            wanted = views[self.processes.rank % self._sharers :: self._sharers]
            with self.processes.together():
                cache.fill(wanted, progress=self._progress("latents"), stop=self.asked.stops)
            if not parts.is_inpainting:
                parts.vae.to("cpu")
        return cache

    def _keeps_latents(self, plan: BatchPlan) -> bool:
        """Whether every latent is in the cache before training, and the autoencoder can leave."""
        return plan.is_finite and self.config.data.cache != "none"

    def _texts(
        self,
        parts: Components,
        images: Sequence[Items | None],
        precision: Precision,
        *,
        trained: bool,
    ) -> TextCache | None:
        if trained or self.config.data.cache == "none":
            for name in parts.text_models:
                self._on_device(parts, name, precision)
            return None
        for name in parts.text_models:
            self._on_device(parts, name, precision, streams=True)
        streams = [self._streaming(parts, name, precision) for name in parts.text_models]
        settings = (str(parts.clip_skip), str(parts.max_prompt_chunks))
        cache = TextCache(
            lambda captions: encode_each(parts, captions),
            fingerprint(*parts.text_encoders, also=settings),
            self._store(TEXT_CACHE_LIMIT),
        )
        captions = [items.all_captions() for items in images if items is not None]
        if None not in captions:
            known = [text for some in captions for text in some or ()]
            with self.processes.together():
                cache.fill(known, progress=self._progress("texts"), stop=self.asked.stops)
        for stream in streams:
            if stream is not None:
                stream.close()
        for encoder in parts.text_encoders:
            encoder.to("cpu")
        return cache

    def _progress(self, stage: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            self.reporter.emit("progress", stage=stage, step=done, steps=total)

        return tell

    def _optimizer(self, trainables: list[Trainable], total: int) -> tuple[Stepper, Ema | None]:
        config = self.config
        groups = parameter_groups(config, trainables, self.processes.count)
        stepper = Stepper(config.optim, groups, total_steps=total, seed=config.run.seed)
        named = {
            f"{group.component}.{name}": parameter
            for group in trainables
            for name, parameter in group.parameters.items()
        }
        return stepper, Ema(named, config.optim.ema) if config.optim.ema.enabled else None


def compile_blocks(parts: Components) -> None:
    """Compiles the denoiser's repeated blocks: what is made for one serves all that are like it, so
    it takes no longer for a deep model."""
    if getattr(parts.denoiser, "_repeated_blocks", None):
        parts.denoiser.compile_repeated_blocks()
        return
    for block in parts.family.blocks(parts.denoiser):
        block.compile()


def _checkpointing(model: torch.nn.Module) -> None:
    """Switches gradient checkpointing on; diffusers and transformers name it differently."""
    enable = getattr(model, "enable_gradient_checkpointing", None) or getattr(
        model, "gradient_checkpointing_enable", None
    )
    if enable is not None:
        enable()
