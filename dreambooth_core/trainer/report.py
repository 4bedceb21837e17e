"""Telling the world what happens: the run's events, TensorBoard, and whoever listens."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_core.jobs import Event, RunFolder

log = logging.getLogger(__name__)

CURVES = {
    "loss": "loss/total",
    "instance_loss": "loss/instance",
    "class_loss": "loss/class",
    "prior_share": "loss/prior share",
    "lr": "learning rate",
    "gradient_norm": "gradient norm",
    "seconds_per_step": "speed/seconds per step",
}
"""Numbers of a progress event that become TensorBoard curves."""

BOARD_SECONDS = 2.0
"""How long they may wait. TensorBoard's writer keeps them up to two minutes anyway."""


class Reporter:
    """Writes events, draws curves, and passes each event on. Silent unless ``enabled``.

    With several processes only the main one reports.
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
        self._events = folder.events
        self._on_event = on_event
        self._wandb = _wandb(folder, wandb_project) if wandb_project and enabled else None
        board = folder.path / board_folder if board_folder else folder.logs
        self._board = _Board(board) if tensorboard and enabled else None

    def emit(self, kind: str, **details: Any) -> None:
        """Writes one event."""
        if not self.enabled:
            return
        event = self._events.write(kind, **details)
        if kind == "progress":
            curves = {t: details[n] for n, t in CURVES.items() if details.get(n) is not None}
            if self._board and curves:
                self._board.add(curves, details["step"])
            if self._wandb and curves:
                self._wandb.log(curves, step=details["step"])
        if self._on_event:
            self._on_event(event)

    def warn(self, message: str) -> None:
        """A warning that the user should see."""
        log.warning("%s", message)
        self.emit("warning", message=message)

    def picture(self, tag: str, image: Image.Image, step: int) -> None:
        """A picture for TensorBoard."""
        if self._board:
            import numpy

            self._board.writer.add_image(tag, numpy.asarray(image), step, dataformats="HWC")
        if self._wandb:
            import wandb

            self._wandb.log({tag: wandb.Image(image)}, step=step)

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()


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


def _wandb(folder: RunFolder, project: str) -> Any:
    import wandb

    return wandb.init(project=project, name=folder.name, dir=str(folder.logs))
