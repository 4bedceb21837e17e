"""Telling the world what happens: events, TensorBoard, whoever listens; and the steps' numbers.

To read one number of a GPU is to wait for all that it has been told to do. So losses and norms of
several steps are left on the device and fetched together: when they are reported, and before
anything is saved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dreambooth_core.errors import (
    DreamBoothError,
    RunGone,
    SaveFailed,
    Stopped,
    TrainingFailed,
)
from dreambooth_core.jobs import Event, RunFolder
from dreambooth_core.options.run import LogOptions
from dreambooth_core.trainer.distributed import Processes

log = logging.getLogger(__name__)

CURVES = {
    "loss": "loss/total",
    "instance_loss": "loss/instance",
    "class_loss": "loss/class",
    "prior_share": "loss/prior share",
    "held_out_loss": "loss/held out",
    "likeness": "images/likeness",
    "prompt": "images/prompt",
    "drift": "images/drift of the class",
    "diversity": "images/diversity of the class",
    "score": "images/score",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "seconds_per_step": "speed/seconds per step",
}
"""Numbers of a progress event that become TensorBoard curves."""

BOARD_SECONDS = 2.0
"""How long they may wait. TensorBoard's writer keeps them up to two minutes anyway."""

BALLAST = ".ballast"
BALLAST_BYTES = 64 * 1024
"""Room that a run keeps for itself, to tell that the disk is full when it is."""


class Reporter:
    """Writes events, draws curves, and passes each event on. Silent unless ``enabled``.

    With several processes only the main one reports. What is told is worth no run: where a curve,
    an image or an event cannot be written, or a listener fails, that is a warning or less.
    """

    def __init__(
        self,
        folder: RunFolder,
        *,
        on_event: Callable[[Event], None] | None = None,
        enabled: bool = True,
    ) -> None:
        self.folder, self.enabled = folder, enabled
        self._home, self._events, self._on_event = folder.identity(), folder.events, on_event
        self._trackers: dict[str, _Board | _Wandb] = {}

    def begin(self, options: LogOptions) -> None:
        """Starts the trackers. Until then nothing but events is written."""
        if not self.enabled:
            return
        wanted: dict[str, type[_Board] | type[_Wandb]] = {}
        if options.wandb and options.project:
            wanted["Weights & Biases"] = _Wandb
        if options.tensorboard:
            wanted["TensorBoard"] = _Board
        for name, kind in wanted.items():
            try:
                self._trackers[name] = kind(self.folder, options)
            except Exception as error:  # wandb's derive from nothing else
                log.exception("%s does not start", name)
                self.warn(f"{name} does not start, the run continues without: {reason_of(error)}")
        with suppress(OSError):
            (self.folder.path / BALLAST).write_bytes(bytes(BALLAST_BYTES))

    def emit(self, kind: str, **details: Any) -> None:
        """Writes one event."""
        if not self.enabled:
            return
        event = self._write(kind, details)
        if kind in ("progress", "measured"):
            curves = {t: details[n] for n, t in CURVES.items() if details.get(n) is not None}
            if curves:
                self._each(lambda tracker: tracker.add(curves, details["step"]))
        if self._on_event:
            try:
                self._on_event(event)
            except Exception:  # whatever a listener raises
                log.exception("whoever listened to the events fails; they go into the file alone")
                self._on_event = None

    def warn(self, message: str) -> None:
        """A warning that the user should see."""
        log.warning("%s", message)
        self.emit("warning", message=message)

    def saved(self, path: Path, step: int, *, result: bool = False) -> None:
        """A checkpoint or a result is written."""
        self.emit("saved", path=self.folder.relative(path), step=step, result=result)

    @contextmanager
    def decorative(self, what: str) -> Iterator[None]:
        """Whatever fails inside is a warning: out of memory, a full disk, a library's own trouble.

        Raises:
            Stopped: the user asked for it inside.
            RunGone: the run's folder is not there any more.
        """
        try:
            yield
        except (Stopped, RunGone):
            raise
        except Exception as error:  # whatever a library raises
            if isinstance(error, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()
            log.exception("%s failed", what)
            self.warn(f"{what} failed, the run continues: {reason_of(error)}")

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """An image for TensorBoard and Weights & Biases."""
        self._each(lambda tracker: tracker.image(tag, image, step))

    def close(self) -> None:
        """Writes out what is buffered, once."""
        self._each(lambda tracker: tracker.close())
        self._trackers.clear()
        with suppress(OSError):
            (self.folder.path / BALLAST).unlink()

    def _write(self, kind: str, details: dict[str, Any]) -> Event:
        """Appends an event; the event even if it could not be written."""
        unwritten: Event = {"time": round(time.time(), 3), "kind": kind, **details}
        if self.folder.identity() != self._home:  # deleted: it is not begun anew
            return unwritten
        for last in (False, True):
            try:
                return self._events.write(kind, **details)
            except SaveFailed:
                if last:
                    log.exception("an event could not be written: %s", kind)
                with suppress(OSError):
                    (self.folder.path / BALLAST).unlink()
        return unwritten

    def _each(self, tell: Callable[[_Board | _Wandb], None]) -> None:
        """Tells every tracker; one that fails is told no more."""
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:  # as in begin
                del self._trackers[name]
                log.exception("%s failed", name)
                self.warn(f"{name} failed, the run continues without: {reason_of(error)}")


def reason_of(error: BaseException) -> str:
    """What went wrong, to be told behind what it cost."""
    if isinstance(error, DreamBoothError):
        return error.line
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__


class _Board:
    """TensorBoard's files of one run.

    The writer's thread is woken for each record, and then both threads wait for each other. So
    the numbers of a step are one record, and records are handed over together.
    """

    def __init__(self, folder: RunFolder, options: LogOptions) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder.path / options.folder if options.folder else folder.logs
        self.writer: Any = SummaryWriter(str(place))
        self._waiting: list[tuple[float, int, Mapping[str, float]]] = []

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of one step, by their tags."""
        now = time.time()
        self._waiting.append((now, step, numbers))
        if now - self._waiting[0][0] >= BOARD_SECONDS:
            self._hand_over()

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """One image."""
        import numpy

        self.writer.add_image(tag, numpy.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Writes out what is waiting."""
        self._hand_over()
        self.writer.close()

    def _hand_over(self) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        for moment, step, numbers in self._waiting:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
            self.writer.file_writer.add_summary(Summary(value=values), step, moment)
        self._waiting = []


class _Wandb:
    """One run at Weights & Biases."""

    def __init__(self, folder: RunFolder, options: LogOptions) -> None:
        import wandb

        self._library: Any = wandb
        self._run: Any = wandb.init(project=options.project, name=folder.name, dir=str(folder.logs))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of one step, by their tags."""
        self._run.log(dict(numbers), step=step)

    def image(self, tag: str, image: Image.Image, step: int) -> None:
        """One image."""
        self._run.log({tag: self._library.Image(image)}, step=step)

    def close(self) -> None:
        """Hands over what is waiting."""
        self._run.finish()


MOST_WAITING = 50
"""Steps after which numbers are read though nobody asks: a run that diverged should soon end."""
NAMES = ("total", "instance", "prior")


@dataclass
class Window:
    """Losses since the last report, and the seconds that their steps took."""

    processes: Processes
    prior_weight: float
    scaled: bool
    """Whether gradients in fp16 are scaled: some that overflow are then expected and skipped."""
    seconds: float = 0.0
    _waiting: list[tuple[int, Tensor, Tensor | None]] = field(default_factory=list)
    """Step, counted from 1, losses ``[n, 3]`` and the gradients' norm, on the device."""
    _sums: list[list[float]] = field(default_factory=list)
    """Of each step that was read: this process's total, instance and prior loss."""
    _norm: float | None = None

    def add(self, step: int, losses: Tensor, norm: Tensor | None) -> None:
        """One more step; nothing is read."""
        self._waiting.append((step, losses, norm))

    @property
    def waiting(self) -> int:
        """Steps whose numbers are still on the device."""
        return len(self._waiting)

    def settle(self) -> None:
        """Reads what is waiting, all at once.

        Raises:
            TrainingFailed: a loss or a norm is not a number, or no gradient arrives at all.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        device = waiting[0][1].device
        flat = [losses.flatten() for _, losses, _ in waiting]
        flat += [norm.float().reshape(1).to(device) for _, _, norm in waiting if norm is not None]
        # Added in double precision here: not every device has it.
        numbers = iter(torch.cat(flat).cpu().tolist())
        for _, losses, _ in waiting:
            sums = [0.0] * len(NAMES)
            for _ in range(losses.shape[0]):
                sums = [total + next(numbers) for total in sums]
            self._sums.append(sums)
        for (step, _, norm), sums in zip(waiting, self._sums[-len(waiting) :], strict=True):
            self._norm = None if norm is None else next(numbers)
            self._check(step, sums)

    def _check(self, step: int, sums: list[float]) -> None:
        if not all(map(isfinite, sums)):
            raise TrainingFailed(
                f"the loss of step {step} is not a number",
                do="Lower the learning rate, or use bf16 or no mixed precision; "
                "resume from the latest checkpoint.",
            )
        if self._norm is None:
            return
        if step == 1 and self._norm == 0.0:
            raise TrainingFailed(
                "no gradient arrives at what is trained, so nothing would be learned",
                do="`dreambooth doctor` shows which attention kernels work here.",
            )
        if not isfinite(self._norm) and not self.scaled:
            raise TrainingFailed(
                f"the gradients of step {step} are not numbers",
                do="Lower the learning rate; resume from the latest checkpoint.",
            )

    def report(self) -> dict[str, Any]:
        """Means over the steps since the last report, of all processes, and begins anew.

        Every process must call it at the same step.
        """
        self.settle()
        count = len(self._sums)
        sums = self.processes.sum(torch.tensor(self._sums, dtype=torch.float64)).tolist()
        shares = [self.prior_weight * p / total if total > 0 else 0.0 for total, _, p in sums]
        means: dict[str, Any] = {
            "loss": sum(total for total, _, _ in sums) / count,
            "instance_loss": sum(instance for _, instance, _ in sums) / count,
            "class_loss": sum(prior for _, _, prior in sums) / count,
            "prior_share": sum(shares) / count,
            "seconds_per_step": self.seconds / count,
            "gradient_norm": self._norm,
        }
        self._sums, self._norm, self.seconds = [], None, 0.0
        return means


class Compiling:
    """What compiling has cost a run so far. A process may have done others before.

    Blocks are compiled where they are first used, forward and backward: nearly all of it lies in
    the first step, more where images of another size or batch come for the first time. What an
    earlier run left in the compiler's own cache on the disk takes no time again.
    """

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._began = self._now()
        self.seconds = self._told = 0.0

    def lap(self) -> float:
        """Seconds since the last time that this was called."""
        new = self._now() - self._began - self.seconds
        self.seconds += new
        return new

    def told(self) -> dict[str, Any]:
        """All seconds so far, as a detail of an event, if they are more than was told before."""
        if self.seconds == self._told:
            return {}
        self._told = self.seconds
        log.info("compiling took %.1f s so far", self.seconds)
        return {"compile_seconds": round(self.seconds, 1)}

    def _now(self) -> float:
        if not self._wanted:
            return 0.0
        from torch._dynamo.utils import calculate_time_spent

        return calculate_time_spent().get("total_wall_time", 0.0)
