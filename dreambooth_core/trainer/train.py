"""A run: set-up, loop and step, from top to bottom. Read this first.

It knows neither family nor method: they are records that are asked. Beside it lies what a step
takes from the images (``samples``), where the networks are (``placement``), what is made before the
first one (``prepare``), what is written (``state``, ``results``), shown (``reports``,
``validation``), judged (``best``) and shared with other processes (``distributed``). ``run`` goes
from a run's folder to here, and on to the proof of the result.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.data.items import Items
from dreambooth_core.data.marks import require_base
from dreambooth_core.data.plan import CLASS, Slot
from dreambooth_core.devices import make_precision, send
from dreambooth_core.errors import Stopped
from dreambooth_core.families.loading import load_base
from dreambooth_core.jobs import write_receipt
from dreambooth_core.memory.advice import next_measure
from dreambooth_core.memory.measure import MemoryWatch
from dreambooth_core.methods.base import method_for
from dreambooth_core.methods.table import METHODS
from dreambooth_core.objective.objective import combine
from dreambooth_core.optim.ema import Ema
from dreambooth_core.optim.stepper import Stepper
from dreambooth_core.randomness import seed_globally
from dreambooth_core.trainer.best import Best, HeldOut, Record
from dreambooth_core.trainer.decide import Decision, parameter_groups
from dreambooth_core.trainer.distributed import replicated, shard
from dreambooth_core.trainer.kept import Kept
from dreambooth_core.trainer.placement import Placement
from dreambooth_core.trainer.prepare import Preparation, image_precision
from dreambooth_core.trainer.references import References
from dreambooth_core.trainer.reports import MOST_WAITING, Compiling, Window
from dreambooth_core.trainer.results import Results
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.saving import Clock, Context
from dreambooth_core.trainer.state import Trained, TrainState
from dreambooth_core.trainer.validation import Validation

ROLLING = "(rolling)"
"""Among what was asked: it is time for a rolling checkpoint. The first process has the clock."""


class Training:
    """A run in memory, as it was decided on: what is loaded and trained, and how far it has come.

    Raises:
        UserError: what could not be told from the files' headers: damaged weights.
        Stopped: the user asked for it.
    """

    def __init__(self, decision: Decision, run: Context, kept: Kept) -> None:
        config = self.config = run.config
        self.folder, self.reporter, self.processes = run.folder, run.reporter, run.processes
        self.asked, self.saver, self.seed = run.asked, run.saver, config.run.seed
        processes = self.processes
        self.step = self._began_at = self._saved_at = 0  # optimizer steps that are done
        self._sampled_at, self._stops_at_epoch_end = -1, False
        run.reporter.emit("progress", stage="loading")

        # The base. A token that is learned was added to the tokenizers that decided, to try it out.
        kind = METHODS[config.method.kind]
        precision = self.precision = make_precision(
            config.run.mixed_precision, processes.device, tf32=config.memory.tf32
        )
        tokenizers = None if kind.learns_token else decision.parts.tokenizers
        unrounded = kind.trains_base or image_precision(config, precision) is not precision
        found = kept.take(config.base, precision.dtype, processes.device, unrounded=unrounded)
        parts = self.parts = found or load_base(config.base, tokenizers=tokenizers)
        place = Placement(config, parts, precision)
        prepare = Preparation(run, place, kept)
        prepare.stop_here()
        if config.marks.file:
            require_base(config.marks.file, parts.fingerprint)

        # The images, and the batches of the whole run.
        concepts = prepare.class_images(decision.concepts)
        items = self.items = Items(concepts, config.data, seed=self.seed)
        held_out = items.held_out() if config.seeks_best else None
        prepare.warn_of(items)
        self.plan = items.plan(
            batch_size=config.run.batch_size,
            accumulation=config.run.gradient_accumulation_steps,
            processes=processes.count,
        )
        self.total_steps = config.total_steps(self.plan.steps_per_epoch)

        # Frozen weights are rounded; images and texts encoded, and what is cached leaves.
        method = self.method = method_for(config.method, parts)
        masters = method.trained_models if kind.trains_base else {}
        place.round(masters=list(masters))
        self.untouched = "" if masters else place.mark()
        latents = prepare.latents(items, self.plan, held_out)
        texts = prepare.texts([items, held_out], trained=method.trains_text)

        # The denoiser comes to the device, and what is trained is added to it.
        denoiser = parts.family.denoiser
        sharded = config.run.sharding != "no" and processes.count > 1
        if not sharded:  # in pieces it goes there block by block
            place.bring(denoiser, streams=True)
        place.attend(parts.denoiser, precision.dtype)
        # While the models are still the base.
        self.samples = Samples(parts, items, latents, texts, self.seed, precision)
        self.objective = parts.family.objective(config.objective, parts)
        judge = prepare.judge(held_out or items)
        answers = prepare.answers(self.samples, self.objective, self.plan.kept_slots())
        trainables = method.attach(self.seed, precision.trained)
        parts.streaming = place.streaming(denoiser, trained=denoiser in masters)
        place.passes(method.passed_models)
        offload = config.run.sharding == "offload"
        shards = shard(parts, trainables, processes, offload=offload) if sharded else None

        if config.prefers:
            method.remember()

        # Optimizer and average, and how they are saved.
        rates = parameter_groups(config, trainables, processes.count)
        self.stepper = Stepper(config.optim, rates, total_steps=self.total_steps, seed=self.seed)
        if parts.streaming:
            parts.streaming.with_states_of(self.stepper.optimizer)
            precision.caches = denoiser not in masters
        named = {f"{g.component}.{n}": p for g in trainables for n, p in g.parameters.items()}
        self.ema = Ema(named, config.optim.ema) if config.optim.ema.enabled else None
        self.trained = Trained(
            run, parts, method, trainables, self.stepper, self.ema, precision.scaler, shards
        )
        self.clock = Clock(config.save.every_minutes)
        self.results = Results(run, parts, method, items, self.plan)

        # What a step computes with.
        self.references = References(method, self.samples, self.objective, answers)
        self.asks_base = config.prior.predicts
        self.prior_weight = config.prior.loss_weight if config.prior.enabled else 0.0
        whole = [m for m in method.passed_models if not (shards and m is parts.denoiser)]
        self.ddp = replicated(self.losses, whole, processes)

        # What is shown and measured on the way.
        self.window = Window(processes, self.prior_weight, scaled=precision.scaler.is_enabled())
        advice = partial(next_measure, config, processes.device, parts.configs)
        self.watch = MemoryWatch(processes.device, advice)
        self.compiling = Compiling(wanted=config.memory.compile)
        self.validation = Validation(run, parts, precision, items)
        size, unseen = config.run.batch_size, None
        if held_out is not None:
            others = replace(self.samples, items=held_out, seed=0)
            unseen = HeldOut(others, self.objective, size)
        self.best = Best(run, unseen, judge)

    # --- the loop -------------------------------------------------------------------------------
    def train(self) -> None:
        """Trains from the present step to the last one. The result, and the images of the last
        step, are whoever's who calls.

        Raises:
            Stopped: the user asked for it; what the verb promises was saved before.
            TrainingFailed: a loss or a gradient is not a number, or nothing learns.
            RunGone: the run's folder is not there any more.
        """
        self._to_training()
        if self.step == 0 and self.config.validation.prompts:
            self.sample()
        self.answer()
        while self.step < self.total_steps:
            started = time.monotonic()
            with self.watch.step():
                losses, norm = self.train_step()
            self.window.add(self.step, losses, norm)
            self.report(started)
            self.save_and_sample()
            self.answer()
        self.measure()
        if self.config.save.at_end and not self.trained.are_kept(self.step):
            self.trained.save(self.step)

    def train_step(self) -> tuple[Tensor, Tensor | None]:
        """One optimizer step: gradients of all its images, the weights' step, their average.

        Returns:
            The losses of :meth:`backward`, and the gradients' norm if it is known, on the device.
        """
        self.stepper.begin(self.step)
        losses = self.backward(self.step)
        norm = self.stepper.finish(self.precision.scaler)
        self.step += 1
        if self.ema:
            self.trained.settle()
            self.ema.update(self.step)
        return losses, norm

    def backward(self, step: int) -> Tensor:
        """Adds the gradients of a step to those that are there.

        Every random number is keyed by (seed, step, slot), and every loss is divided by the counts
        of the whole step, so neither accumulation nor the number of processes changes a result.

        Returns:
            Losses ``[n, 3]`` of this process's groups of slots, fp32 on the device: total,
            instance and prior, each a share of the whole step's, which is their sum.
        """
        passes, counts = self.plan.passes(step, self.processes.rank)
        forward, found = self.ddp or self.losses, []
        if self.config.memory.cuda_graphs:  # what was recorded may be written over from here on
            torch.compiler.cudagraph_mark_step_begin()
        for number, group in enumerate(passes, 1):
            # Dropout draws from the global generator: keyed here, so that resuming a run
            # needs no saved generator state.
            device = self.precision.device.type
            seed_globally("dropout", self.seed, step, group[0].number, device=device)
            # Gradients travel once a step, with the last pass.
            last = number == len(passes)
            with nullcontext() if last or self.ddp is None else self.ddp.no_sync():
                total, instance, prior = forward(group, step, counts)
                # The engines average over processes; the step's losses are shares of one sum.
                shared = total * self.processes.count if self.processes.count > 1 else total
                self.precision.scaler.scale(shared).backward()
            found.append(torch.stack([total.detach(), instance, prior])[None])
        return torch.cat(found)

    def losses(
        self, group: Sequence[Slot], step: int, counts: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total, instance and class loss of slots of one size, each a scalar. ``counts``: instance
        and class slots of the whole step."""
        group, pairs = self.items.in_pairs(group)
        latents = self.samples.latents(group, step)
        keys = [("train", self.seed, *slot.key(step)) for slot in group]
        noisy = self.objective.draw(latents, keys)
        inpainting = self.samples.inpainting(group, step)
        if self.asks_base:
            noisy = self.references.preserved(noisy, group, step, inpainting)
        prediction = self.samples.predict(noisy, group, step, inpainting)
        losses = self.objective.losses(prediction, noisy, self.samples.masks(group))
        if pairs:
            losses = self.references.compared(losses, noisy, group, pairs, step, inpainting)
        losses = losses * send(torch.tensor([float(s.counts) for s in group]), losses.device)
        is_class = send(torch.tensor([slot.kind == CLASS for slot in group]), losses.device)
        return combine(losses, is_class, self.prior_weight, counts)

    # --- what happens between steps -------------------------------------------------------------
    def report(self, started: float) -> None:
        """Tells of the steps since the last report, where that is due. ``started``: the time at
        which the last step began."""
        due = self.step % self.config.log.every_steps == 0 or self.step == self.total_steps
        if due or self.window.waiting >= MOST_WAITING:
            self.window.settle()
        self.window.seconds += time.monotonic() - started - self.compiling.lap()
        if not due:
            return
        means = self.window.report()
        if full := self.watch.alarm(means["seconds_per_step"]):
            self.reporter.warn(full)
        if not self.items.class_images:
            del means["class_loss"], means["prior_share"]
        measured = self.watch.told() | self.compiling.told()
        if measured and self.processes.is_main:
            self.saver("the receipt", partial(write_receipt, self.folder, memory=measured))
        self.reporter.emit(
            "progress",
            stage="train",
            step=self.step,
            steps=self.total_steps,
            epoch=self.plan.epoch_of(self.step - 1),
            lr=next(iter(self.stepper.learning_rates.values())),
            **means,
            **measured,
        )

    def save_and_sample(self) -> None:
        """What the configuration asks for at this step; the last one's is whoever's who calls."""
        save, shown = self.config.save, self.config.validation
        if self.step == self.total_steps:
            return
        if self.step >= save.first_step and self._due(save.every_steps, save.every_epochs):
            self.save()
            if self.best.gets_no_better:
                self.total_steps = self.step
                return
        if shown.prompts and self._due(shown.every_steps, shown.every_epochs):
            self.sample()

    def _due(self, steps: int | None, epochs: int | None) -> bool:
        if steps and self.step % steps == 0:
            return True
        ended = self.plan.ends_epoch(self.step - 1)
        return bool(epochs and ended and (self.plan.epoch_of(self.step - 1) + 1) % epochs == 0)

    def answer(self) -> None:
        """Does what the user asked for meanwhile; all processes do the same at one step.

        Raises:
            Stopped: a verb said so.
        """
        heard = [*self.asked.take(), *([ROLLING] if self.clock.due() else [])]
        verbs = set(self.processes.agree(heard))
        if self.step == self.total_steps:
            return  # the result comes next, whatever was asked
        if "stop_without_saving" in verbs:
            raise Stopped(f"stopped at step {self.step} without saving; {self.trained.latest()}")
        self._stops_at_epoch_end |= "stop_after_epoch" in verbs
        ended = self.step > self._began_at and self.plan.ends_epoch(self.step - 1)
        if (ended and self._stops_at_epoch_end) or verbs & {"stop", "stop_after_step"}:
            self.save()
            raise Stopped(
                f"stopped at step {self.step} of {self.total_steps}; {self.trained.latest()}"
            )
        if "sample" in verbs:
            self.sample(asked=True)
        if "save" in verbs:
            self.save()
        elif ROLLING in verbs and self._saved_at != self.step:
            self.window.settle()
            began = time.monotonic()
            self.trained.save_rolling(self.step)
            self.clock.saved(began)
            self._to_training()

    def save(self) -> None:
        """Writes a checkpoint, and what has been learned so far as a result that hosts load; once
        for each step, and none of what was read from one."""
        if self._saved_at == self.step:
            return
        self.window.settle()  # nothing that diverged is saved
        began = time.monotonic()
        self.measure()
        self.trained.save(self.step)
        if self.save_result(f"{self.folder.name}-{self.step:06d}"):
            self.results.prune()
        # Whoever leaves first is taken for a failure, and the launcher ends the others soon.
        self.processes.wait()
        self.clock.saved(began)
        self._saved_at = self.step
        self._to_training()

    def save_result(self, name: str) -> Path | None:
        """Writes what has been learned under ``name``, and once more if no step was better; on a
        full disk, once there is room. None in all processes but the main one."""
        if not self.trained.takes_part:
            return None
        with self.trained.as_result(whole=True):
            if not self.processes.is_main:
                return None
            path = self.saver(f"the result {name}", lambda: self.results.write(name, self.step))
        self.reporter.saved(path, self.step, result=True)
        if self.step == self.best.record.best and self.config.save.best:
            kept = self.saver("the best result", lambda: self.results.keep_best(name, path))
            self.reporter.saved(kept, self.step, result=True)
        return path

    def sample(self, *, asked: bool = False) -> None:
        """Makes the validation images of this step, once. A request to stop ends it within one
        denoising step, and is answered by the loop. ``asked``: somebody wants to see images."""
        prompts = self.validation.prompts(asked=asked)
        if not prompts or self._sampled_at == self.step or not self.trained.takes_part:
            return
        self._sampled_at = self.step
        # In pieces all processes must make them, and none may stop alone.
        stop = None if self.trained.shards else self.asked.stops
        with suppress(Stopped), self.trained.as_result():
            self.validation.make(self.step, prompts, stop)
            if self.processes.is_main:
                with self.reporter.decorative("putting the images beside the result"):
                    self.results.arrange_samples(self.step)
        self._to_training()

    def measure(self) -> None:
        """Measures this step, if there is anything to tell by. All processes must come here."""
        self.best.measure(self.step, self.trained.as_result(), self.asked.stops)

    def restore(self, state: TrainState) -> None:
        """Goes back to a saved state."""
        self.trained.restore(state)
        self.step = self._began_at = self._saved_at = state.step
        self.best.record = Record.of(list(self.folder.events), self.step)

    def _to_training(self) -> None:
        """Trained models are in training mode: at the start, and after whatever may change it.
        Not at every step: it takes longer than all of the optimizer's work on an adapter."""
        for model in self.method.trained_models.values():
            model.train()
