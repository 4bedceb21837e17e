"""The training loop: step, save, sample, listen; it knows neither family nor method."""

from __future__ import annotations

import time
from functools import partial

from torch import Tensor

from dreambooth_core.errors import Stopped
from dreambooth_core.jobs import write_receipt
from dreambooth_core.jobs.checkpoints import name_of, saved_steps
from dreambooth_core.memory.advice import next_measure
from dreambooth_core.memory.measure import MemoryWatch
from dreambooth_core.trainer.metrics import MOST_WAITING, Window
from dreambooth_core.trainer.session import Session

ROLLING = "(rolling)"
"""Among what was asked: it is time for a rolling checkpoint. The first process has the clock."""

SAVING_SHARE = 0.05
"""The most of the run's time that rolling checkpoints may take."""


def train(session: Session) -> None:
    """Trains from the session's step to its last one. The result, and the images of the last
    step, are whoever's who calls.

    Raises:
        Stopped: the user asked for it; what the verb promises was saved before.
        TrainingFailed: a loss or a gradient is not a number, or nothing learns.
        RunGone: the run's folder is not there any more.
    """
    run = _Loop(session)
    if session.step == 0 and session.validation:
        run.sample()
    run.asked()
    while session.step < session.total_steps:
        run.step()
        run.scheduled()
        run.asked()
    session.measure()
    if session.config.save.at_end and not session.is_kept():
        session.save_state()


class _Clock:
    """Says when a rolling checkpoint is due: by time, since steps take from milliseconds to
    minutes, and less often where saving takes long."""

    def __init__(self, minutes: float | None) -> None:
        self._interval = None if minutes is None else minutes * 60
        self._since = time.monotonic()

    def due(self) -> bool:
        """Whether it is time."""
        return self._interval is not None and time.monotonic() - self._since >= self._interval

    def saved(self, began: float) -> None:
        """A checkpoint, begun at that time, is written."""
        self._since = time.monotonic()
        if self._interval is not None:
            self._interval = max(self._interval, (self._since - began) / SAVING_SHARE)


class _Loop:
    """One pass over the remaining steps."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.window = Window(
            session.processes,
            session.computer.prior_weight,
            scaled=session.precision.scaler.is_enabled(),
        )
        self.stop_at_epoch_end = False
        device = session.processes.device
        advice = partial(next_measure, session.config, device, session.parts.configs)
        self.watch = MemoryWatch(device, advice)
        self.clock = _Clock(session.config.save.every_minutes)
        self._began_at = self._saved_at = session.step
        self._sampled_at = -1
        self._to_training()

    def step(self) -> None:
        """One optimizer step.

        Raises:
            TrainingFailed: no gradient arrives, or one that is not a number.
        """
        session = self.session
        started = time.monotonic()
        with self.watch.step():
            losses, norm = self._learn()
        session.step += 1
        if session.ema:
            session.settle()
            session.ema.update(session.step)
        self.window.add(session.step, losses, norm)
        last = session.step == session.total_steps
        due = session.step % session.config.log.every_steps == 0 or last
        if due or self.window.waiting >= MOST_WAITING:
            self.window.settle()
        self.window.seconds += time.monotonic() - started
        if due:
            self._report()

    def _learn(self) -> tuple[Tensor, Tensor | None]:
        """Gradients and the weights' step; the losses, and the gradients' norm if it is known."""
        session = self.session
        session.stepper.begin(session.step)
        losses = session.computer.backward(session.step)
        return losses, session.stepper.finish(session.precision.scaler)

    def _report(self) -> None:
        session = self.session
        means = self.window.report()
        if full := self.watch.alarm(means["seconds_per_step"]):
            session.reporter.warn(full)
        if not session.samples.has_class_images:
            means.pop("class_loss")
            means.pop("prior_share")
        measured = self.watch.told()
        if measured.get("measured_on") == "cuda" and session.processes.is_main:
            write = partial(write_receipt, session.folder, memory=measured)
            session.saver("the receipt", write)
        session.reporter.emit(
            "progress",
            stage="train",
            step=session.step,
            steps=session.total_steps,
            epoch=session.plan.epoch_of(session.step - 1),
            lr=next(iter(session.stepper.learning_rates.values())),
            **means,
            **measured,
        )

    def scheduled(self) -> None:
        """What the configuration asks for at this step."""
        session = self.session
        last = session.step == session.total_steps
        save, watch = session.config.save, session.config.validation
        early = session.step < save.first_step
        if self._due(save.every_steps, save.every_epochs) and not last and not early:
            self.save()
            if session.gets_no_better:
                session.total_steps = session.step
                return
        if session.validation and not last and self._due(watch.every_steps, watch.every_epochs):
            self.sample()

    def _due(self, steps: int | None, epochs: int | None) -> bool:
        session = self.session
        if steps and session.step % steps == 0:
            return True
        ended = session.plan.ends_epoch(session.step - 1)
        done = session.plan.epoch_of(session.step - 1) + 1
        return bool(epochs and ended and done % epochs == 0)

    def asked(self) -> None:
        """What the user asked for meanwhile.

        Raises:
            Stopped: a verb said so.
        """
        session = self.session
        verbs = self._take()
        if session.step == session.total_steps:
            return  # the result comes next, whatever was asked
        if "stop_without_saving" in verbs:
            raise Stopped(f"stopped at step {session.step} without saving; {self._kept()}")
        self.stop_at_epoch_end |= "stop_after_epoch" in verbs
        ended = session.step > self._began_at and session.plan.ends_epoch(session.step - 1)
        ended &= self.stop_at_epoch_end
        if ended or "stop" in verbs or "stop_after_step" in verbs:
            self.save()
            raise Stopped(
                f"stopped at step {session.step} of {session.total_steps}; {self._kept()}"
            )
        if "sample" in verbs:
            self.sample(asked=True)
        if "save" in verbs:
            self.save()
        elif ROLLING in verbs and self._saved_at != session.step:
            self.window.settle()
            began = time.monotonic()
            session.save_rolling()
            self.clock.saved(began)
            self._to_training()

    def _take(self) -> list[str]:
        """What was asked, and what the clock says: all processes must do the same at one step."""
        verbs = self.session.asked.take()
        if self.clock.due():
            verbs.append(ROLLING)
        return self.session.processes.agree(verbs)

    def _kept(self) -> str:
        """What the run resumes from."""
        steps = saved_steps(self.session.folder.checkpoints)
        if not steps:
            return "nothing is saved, it resumes from its beginning"
        last = max(steps)
        return f"it resumes from step {last} (checkpoints/{name_of(last)})"

    def save(self) -> None:
        """Writes a checkpoint, once for each step; none of what was read from one."""
        if self._saved_at != self.session.step:
            self.window.settle()  # nothing that diverged is saved
            began = time.monotonic()
            self.session.save_checkpoint()
            # Whoever leaves first is taken for a failure, and the launcher ends the others soon.
            self.session.processes.wait()
            self.clock.saved(began)
            self._saved_at = self.session.step
            self._to_training()

    def sample(self, *, asked: bool = False) -> None:
        """Makes the validation images, once for each step."""
        if self._sampled_at != self.session.step:
            self._sampled_at = self.session.step
            self.session.sample(asked=asked)
            self._to_training()

    def _to_training(self) -> None:
        """Trained models are in training mode: at the start, and after whatever may change it.
        Not at every step: it takes longer than all of the optimizer's work on an adapter."""
        for model in self.session.method.trained_models.values():
            model.train()
