"""A worker on a run, seen from a node: bar, previews, time left, and the cancel button."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from dreambooth_core.errors import DreamBoothError, TrainingFailed, UserError
from dreambooth_core.hosting.curves import MEASURES, Curves, smoothed, thinned
from dreambooth_core.jobs import (
    Event,
    Proposal,
    RunFolder,
    saved_steps,
    start,
    status,
    terminate,
)
from dreambooth_core.jobs.stages import stage_words

from . import host
from .words import in_words

log = logging.getLogger("dreambooth")

POLL = 0.2
DRAWN = 1.0
"""Seconds between two drawings of the curves."""

MOST_POINTS = 120
STOPPING = (
    "stopping: the step is finished and saved; cancel again to stop without saving",
    "stopping without saving; cancel again to end the process at once",
    "ending the process",
)
"""What is done after each press of the queue's cancel button, and what one more would do."""

ENDED = ("finished", "stopped", "failed", "lost")


def train(folder: RunFolder, progress: host.Progress, proposal: Proposal | None = None) -> None:
    """Starts a worker, on a run that is resumed with the settings to resume it with, and watches
    it to its end.

    Raises:
        DreamBoothError: the run failed; its one line.
        BaseException: the host's own, when its cancel button was pressed; the worker has then
            finished its step, saved and ended.
    """
    offset = folder.events.size()
    start(folder, proposal=proposal)
    watch(folder, progress, offset)


def watch(folder: RunFolder, progress: host.Progress, offset: int = 0) -> None:
    """Follows a run to its end; see :func:`train`."""
    try:
        _follow(folder, _Screen(folder, progress), offset)
    except DreamBoothError:
        raise
    except BaseException:
        stop(folder, progress)
        raise


def stop(folder: RunFolder, progress: host.Progress) -> None:
    """Ends a run's worker and tells what was kept.

    The worker stops within a step, or a denoising step, and then writes what it has learned,
    however long that takes: writing a whole model to a slow disk takes minutes. Only a person
    ends it sooner, by pressing the cancel button again.
    """
    try:
        pressed = 0
        _press(folder, progress, pressed)
        while status(folder).state not in ENDED:
            if host.cancelled():
                pressed += 1
                _press(folder, progress, pressed)
            time.sleep(POLL)
        line = f"{folder.name}: {kept(folder)}"
        progress.say(line)
        log.info("dreambooth: %s", line)
    except DreamBoothError as error:  # the interruption itself matters more
        log.warning("dreambooth: %s", error.line)


def _press(folder: RunFolder, progress: host.Progress, pressed: int) -> None:
    progress.say(STOPPING[min(pressed, len(STOPPING) - 1)])
    if pressed > 1:
        terminate(folder, patience=0.0)
    else:
        folder.control.request("stop_without_saving" if pressed else "stop")


def kept(folder: RunFolder) -> str:
    """What there is of a run that has ended."""
    ended = status(folder)
    if ended.state == "finished":
        return "finished before it could be stopped; queue again to use the result"
    last = max(saved_steps(folder.checkpoints), default=None)
    if last is None:
        return "stopped; nothing was saved yet"
    of = f" of {ended.steps}" if ended.steps else ""
    return f"stopped; step {last}{of} is kept: queue again to resume"


def _follow(folder: RunFolder, screen: _Screen, offset: int) -> None:
    while True:
        # The state before the events: an ending between the two is then seen as one.
        state = status(folder)
        events, offset = folder.events.read(offset)
        for event in events:
            screen.show(event)
        if state.state in ENDED and not events:
            screen.end(state.state)
            break
        host.stop_if_interrupted()
        if not events:
            time.sleep(POLL)
    if screen.failure is not None:
        failed = screen.failure
        raise in_words(
            TrainingFailed(
                str(failed.get("what") or failed.get("message")),
                where=failed.get("where"),
                do=failed.get("do"),
            )
        )
    if state.state == "lost":
        raise TrainingFailed(state.message, where=folder.path)
    if state.state == "stopped":
        raise UserError(
            "the run was stopped from elsewhere", where=folder.name, do="Queue again to resume."
        )


class _Screen:
    """Events on a node."""

    def __init__(self, folder: RunFolder, progress: host.Progress) -> None:
        self.failure: Event | None = None
        self._folder = folder
        self._progress = progress
        self._at = (0, 1)
        self._trains = False
        self._curves = Curves()
        self._drawn = 0.0
        progress.say(stage_words("starting"))

    def show(self, event: Event) -> None:
        """Shows one event. Raises the host's exception if it was interrupted."""
        self._curves.add(event)
        kind = event["kind"]
        if kind == "measured" or time.monotonic() - self._drawn > DRAWN:
            self.draw()
        if kind in ("started", "progress"):
            self._progress.say(line_of(event))
            self._advance(kind == "started" or event.get("stage", "train") == "train", event)
        elif kind == "sample":
            self._progress.show(*self._at, _picture(self._folder.path / event["path"]))
        elif kind == "measured":
            self._progress.say(line_of(event))
        elif kind == "warning":
            log.warning("dreambooth: %s", event["message"])
        elif kind == "error":
            self.failure = event

    def draw(self) -> None:
        """Draws the curves as they are now."""
        self._drawn = time.monotonic()
        curves = self._curves
        if curves.points:
            losses = smoothed([loss for _, loss in curves.points])
            steps = [step for step, _ in curves.points]
            self._progress.draw(
                {
                    "steps": max(curves.steps, steps[-1]),
                    "loss": thinned(list(zip(steps, losses, strict=True)), MOST_POINTS),
                    "measured": {
                        name: [(step, row[name]) for step, row in each if name in row]
                        for each in [sorted(curves.measured.items())]
                        for name in MEASURES
                    },
                    "best": curves.best,
                }
            )

    def end(self, state: str) -> None:
        """The last that is shown of a run."""
        self.draw()
        self._progress.say(state)

    def _advance(self, training: bool, event: Event) -> None:
        """Moves the bar; once training has begun, with its steps alone."""
        self._trains = self._trains or training
        if training or (not self._trains and event.get("steps")):
            self._at = (event.get("step", 0), event.get("steps", 0) or 1)
            self._progress.show(*self._at)


def line_of(event: Event) -> str:
    """What is being done, how well, and how long it will take."""
    if event.get("kind") == "measured":
        return f"step {event['step']}, the best so far is step {event['best']}"
    stage = str(event.get("stage", "train"))
    step, steps = event.get("step", 0), event.get("steps", 0)
    if stage != "train" and not steps:
        return stage_words(stage)
    if stage != "train":
        return f"{stage_words(stage)} {step}/{steps}"
    parts = [f"step {step}/{steps}"]
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if event.get("compile_seconds"):
        parts.append(f"compiled in {time_text(event['compile_seconds'])}")
    if event.get("seconds_per_step"):
        parts.append(f"{time_text((steps - step) * event['seconds_per_step'])} left")
    return ", ".join(parts)


def time_text(seconds: float) -> str:
    """About how long."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _picture(path: Path) -> Any:
    from PIL import Image

    with Image.open(path) as opened:
        return opened.convert("RGB")


def samples_of(folder: RunFolder, step: int | None = None) -> list[Path]:
    """The validation images of a step, or of the last that has any."""
    by_step: dict[int, dict[str, Path]] = {}
    for event in folder.events:
        if event["kind"] == "sample":
            by_step.setdefault(event["step"], {})[event["path"]] = folder.path / event["path"]
    known = by_step.get(step, {}) if step is not None else by_step.get(max(by_step, default=0), {})
    return [path for path in known.values() if path.is_file()]
