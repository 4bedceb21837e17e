"""Everything that a run consists of while it is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from torch import nn

from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import BatchPlan
from dreambooth_core.devices import Precision
from dreambooth_core.errors import Stopped
from dreambooth_core.families.base import Components
from dreambooth_core.jobs import RunFolder
from dreambooth_core.jobs.checkpoints import is_rolling, prune, saved_steps
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.optim.ema import Ema
from dreambooth_core.optim.stepper import Stepper
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.arrangements import arrange_samples
from dreambooth_core.trainer.asked import Asked
from dreambooth_core.trainer.best import HeldOut, Record
from dreambooth_core.trainer.judge import Judge
from dreambooth_core.trainer.processes import Processes
from dreambooth_core.trainer.report import Reporter
from dreambooth_core.trainer.results import keep_best, prune_results, write_result
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.saving import Saver
from dreambooth_core.trainer.sharding import Shards, scattered
from dreambooth_core.trainer.state import TrainState, save_state, settings_identity
from dreambooth_core.trainer.step import StepComputer
from dreambooth_core.trainer.validation import Validation


@dataclass
class Session:
    """A run in memory: what was configured, loaded and built, and how far it has come."""

    config: TrainConfig
    folder: RunFolder
    reporter: Reporter
    asked: Asked
    saver: Saver
    processes: Processes
    precision: Precision
    parts: Components
    method: Method
    items: Items
    plan: BatchPlan
    samples: Samples
    computer: StepComputer
    trainables: list[Trainable]
    stepper: Stepper
    ema: Ema | None
    validation: Validation | None
    validation_of: Callable[[list[str]], Validation]
    """For prompts that somebody asks for besides the run's own."""
    shards: Shards | None
    """Where the denoiser is in pieces over the processes."""
    total_steps: int
    held_out: HeldOut | None = None
    judge: Judge | None = None
    """They tell which step is best, where that is asked for; the judge in the first process."""
    record: Record = field(default_factory=Record)
    step: int = 0
    """Optimizer steps that are done."""
    _measured_at: int = -1
    results: list[str] = field(default_factory=list)
    """What was written and is a result, relative to the run's folder."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained."""
        return [p for group in self.trainables for p in group.parameters.values()]

    @property
    def identity(self) -> dict[str, object]:
        """What cannot change when a run is resumed."""
        return {
            **settings_identity(self.config),
            "base": self.parts.fingerprint,
            "commit": self.parts.commit,
            "family": self.parts.family.name,
            "trained": [group.component for group in self.trainables],
            "parameters": sum(group.count for group in self.trainables),
        }

    @contextmanager
    def result_weights(self) -> Iterator[None]:
        """Inside, the models hold the weights to sample with and to save as the result."""
        self.settle()
        with (
            self.ema.applied() if self.ema else self.stepper.evaluation(),
            self.method.as_result(),
        ):
            try:
                yield
            finally:
                self.settle()

    def settle(self) -> None:
        """Streamed weights are in RAM from here on, to be read and written, until the next step."""
        if self.parts.streaming:
            self.parts.streaming.settle()

    def sample(self, *, asked: bool = False) -> None:
        """Makes the validation images of this step, if there are any to make. A request to stop
        ends it within one denoising step, and is answered by the loop.

        Args:
            asked: somebody wants to see images now.
        """
        validation = self.validation
        if asked and validation is None:
            with self.reporter.decorative("making an image of what is trained on"):
                validation = self.validation_of([next(iter(self.items.first_captions().values()))])
        main, shards = self.processes.is_main, self.shards
        if not validation or not (main or shards):
            return
        # In pieces all must make them, and none may stop alone.
        should_stop = None if shards else self.asked.stops
        count = validation.count
        self.reporter.emit("progress", stage="samples", step=0, steps=count)
        try:
            with self.result_weights():
                validation.make(self.step, should_stop)
            if main:
                with self.reporter.decorative("putting the images beside the result"):
                    arrange_samples(self)
        except Stopped:
            return
        self.reporter.emit("progress", stage="samples", step=count, steps=count)

    def state(self) -> TrainState:
        """The state at the present step; its tensors are the live ones. In pieces all processes
        must ask for it, and the main one alone gets it."""
        self.settle()
        states: dict[str, Any] = {"optimizer": self.stepper.state_dict()}
        if self.ema:
            states["ema"] = self.ema.state_dict()
        if self.precision.scaler.is_enabled():
            states["scaler"] = self.precision.scaler.state_dict()
        weights = self.method.tensors()
        if self.shards:
            weights, states = self.shards.gathered(weights), self.shards.gathered(states)
        return TrainState(self.step, weights, states, self.identity)

    def restore(self, state: TrainState) -> None:
        """Goes back to a saved state."""
        self.settle()
        self.method.restore(scattered(state.weights, self.method.tensors()))
        self.stepper.load_state_dict(state.states["optimizer"])
        if self.ema:
            self.ema.load_state_dict(scattered(state.states["ema"], self.ema.averages))
        if "scaler" in state.states:
            self.precision.scaler.load_state_dict(state.states["scaler"])
        self.step = state.step
        self.record = Record.of(list(self.folder.events), self.step)

    def measure(self) -> None:
        """Measures this step, if there is anything to tell by. All processes must come here: each
        computes the loss, the first one draws, and its numbers count."""
        if not self.config.seeks_best or self._measured_at == self.step:
            return
        self._measured_at = self.step
        found: dict[str, float] = {}
        with self.result_weights():
            if self.held_out:
                with self.reporter.decorative("measuring the held-out loss"):
                    found["held_out_loss"] = self.held_out.loss()
            if self.judge:
                with self.reporter.decorative("judging images"), suppress(Stopped):
                    look = self.judge.look(self.asked.stops)
                    found |= {**look.numbers(), "score": round(look.score(self.judge.base), 5)}
        said = self.processes.agree([f"{name}={value!r}" for name, value in found.items()])
        numbers = ((name, float(value)) for name, value in (each.split("=") for each in said))
        found = {name: value for name, value in numbers if isfinite(value)}
        if "held_out_loss" in found:
            self.record.losses[self.step] = found["held_out_loss"]
        if "score" in found:
            self.record.scores[self.step] = found["score"]
        if found:
            self.reporter.emit("measured", step=self.step, **found, best=self.record.best)

    @property
    def gets_no_better(self) -> bool:
        """Whether so many measurements in a row as ``run.stop_when`` says were no better."""
        patience = self.config.run.stop_when
        return patience is not None and self.record.worse() >= patience

    def keep_best(self, name: str, result: Path) -> None:
        """Keeps the result ``name`` of this step as the best one, if it is; on a full disk, once
        there is room."""
        if self.step == self.record.best and self.config.save.best:
            path = self.saver("the best result", lambda: keep_best(self, name, result))
            self.reporter.emit(
                "saved", path=self.folder.relative(path), step=self.step, result=True
            )

    def save_checkpoint(self) -> None:
        """Writes a checkpoint, and what has been learned so far as a result that hosts load."""
        self.measure()
        self.save_state()
        name = f"{self.folder.name}-{self.step:06d}"
        path = self.save_result(name)
        if path is not None:
            self.keep_best(name, path)
            prune_results(self, self.config.save.keep)

    def is_kept(self) -> bool:
        """Whether there is a checkpoint of this step that stays: nothing else may replace it.
        In pieces all processes must ask, and hear what the main one sees."""
        path = saved_steps(self.folder.checkpoints).get(self.step)
        kept = ["kept"] if path is not None and not is_rolling(path) else []
        return bool(self.processes.agree(kept) if self.shards else kept)

    def save_state(self) -> None:
        """Writes a checkpoint to resume from; on a full disk, once there is room."""
        if not (self.processes.is_main or self.shards):
            return
        state, what = self.state(), f"the checkpoint of step {self.step}"
        if self.processes.is_main:
            self._saved(self.saver(what, lambda: save_state(self.folder.checkpoints, state)))

    def save_rolling(self) -> None:
        """Writes a checkpoint that the next one replaces. It is worth no waiting: where it cannot
        be written, that is a warning."""
        if not (self.processes.is_main or self.shards) or self.is_kept():
            return
        with self.reporter.decorative(f"saving the resume state of step {self.step}"):
            state = self.state()
            if self.processes.is_main:
                self.asked.look()
                self._saved(save_state(self.folder.checkpoints, state, rolling=True))

    def _saved(self, path: Path) -> None:
        self.reporter.emit("saved", path=self.folder.relative(path), step=self.step, result=False)
        prune(self.folder.checkpoints, self.config.save.keep)

    def whole(self) -> AbstractContextManager[None]:
        """Inside, the main process's models are whole. In pieces all processes must come here."""
        return self.shards.whole() if self.shards else nullcontext()

    def save_result(self, name: str) -> Path | None:
        """Writes what has been learned under ``name``; on a full disk, once there is room. None in
        all processes but the main one."""
        if not (self.processes.is_main or self.shards):
            return None
        with self.result_weights(), self.whole():
            if not self.processes.is_main:
                return None
            path = self.saver(f"the result {name}", lambda: write_result(self, name))
        self.results.append(self.folder.relative(path))
        self.reporter.emit("saved", path=self.results[-1], step=self.step, result=True)
        return path
