"""Telling the world what happens: the run's events, TensorBoard, and whoever listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image

from dreambooth_core.errors import FAILURES, DreamBoothError, RunGone, SaveFailed, Stopped
from dreambooth_core.jobs import Event, RunFolder

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
        tensorboard: bool,
        board_folder: str = "",
        wandb_project: str | None = None,
        on_event: Callable[[Event], None] | None = None,
        enabled: bool = True,
    ) -> None:
        self.folder = folder
        self.enabled = enabled
        self._home = folder.identity()
        self._events = folder.events
        self._on_event = on_event
        self._trackers: dict[str, _Tracker] = {}
        self._wanted: dict[str, Callable[[], _Tracker]] = {}
        if wandb_project and enabled:
            self._wanted["Weights & Biases"] = lambda: _Wandb(folder, wandb_project)
        if tensorboard and enabled:
            board = folder.path / board_folder if board_folder else folder.logs
            self._wanted["TensorBoard"] = lambda: _Board(board)

    def begin(self) -> None:
        """Starts the trackers. Until then nothing but events is written."""
        for name, start in self._wanted.items():
            try:
                self._trackers[name] = start()
            except FAILURES as error:
                log.exception("%s does not start", name)
                self.warn(f"{name} does not start, the run continues without: {_reason(error)}")
        if self.enabled:
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
            except FAILURES:
                log.exception("whoever listened to the events fails; they go into the file alone")
                self._on_event = None

    def warn(self, message: str) -> None:
        """A warning that the user should see."""
        log.warning("%s", message)
        self.emit("warning", message=message)

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
        except FAILURES as error:
            if isinstance(error, torch.cuda.OutOfMemoryError):
                torch.cuda.empty_cache()
            log.exception("%s failed", what)
            reason = error.line if isinstance(error, DreamBoothError) else _reason(error)
            self.warn(f"{what} failed, the run continues: {reason}")

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """An image for TensorBoard and Weights & Biases."""
        self._each(lambda tracker: tracker.picture(tag, image, step))

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

    def _each(self, tell: Callable[[_Tracker], None]) -> None:
        """Tells every tracker; one that fails is told no more."""
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except FAILURES as error:
                del self._trackers[name]
                log.exception("%s failed", name)
                self.warn(f"{name} failed, the run continues without: {_reason(error)}")


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text or type(error).__name__


class _Tracker(Protocol):
    """Where curves and images go."""

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of one step, by their tags."""

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """One image."""

    def close(self) -> None:
        """Hands over what is waiting."""


class _Board:
    """TensorBoard's files of one run.

    The writer's thread is woken for each record, and then both threads wait for each other. So
    the numbers of a step are one record, and records are handed over together.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder))
        self._waiting: list[tuple[float, int, Mapping[str, float]]] = []

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of one step, by their tags."""
        now = time.time()
        self._waiting.append((now, step, numbers))
        if now - self._waiting[0][0] >= BOARD_SECONDS:
            self._hand_over()

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
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

    def __init__(self, folder: RunFolder, project: str) -> None:
        import wandb

        self._library: Any = wandb
        self._run: Any = wandb.init(project=project, name=folder.name, dir=str(folder.logs))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """The numbers of one step, by their tags."""
        self._run.log(dict(numbers), step=step)

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """One image."""
        self._run.log({tag: self._library.Image(image)}, step=step)

    def close(self) -> None:
        """Hands over what is waiting."""
        self._run.finish()
