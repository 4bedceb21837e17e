"""A worker on a run, seen from a node: bar, previews, time left, and the cancel button."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from dreambooth_core.errors import DreamBoothError, TrainingFailed, UserError
from dreambooth_core.jobs import Event, Proposal, RunFolder, start, status, terminate

from . import host

log = logging.getLogger("dreambooth")

POLL = 0.2
PATIENCE = 60.0
"""Seconds that a worker gets to finish its step and save when the queue's button was pressed."""

STAGES = {
    "class_images": "making class images",
    "latents": "encoding images",
    "texts": "encoding captions",
    "disk_full": "the disk is full: waiting for room",
}
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
        progress.say("stopping: finishing the step and saving; cancel again to stop without")
        stop(folder)
        raise


def stop(folder: RunFolder) -> None:
    """Ends a run's worker within a step, keeping what it has learned; without saving if the
    host's cancel button is pressed once more."""
    try:
        folder.control.request("stop")
        deadline = time.monotonic() + PATIENCE
        while status(folder).state not in ENDED:
            if time.monotonic() > deadline:
                terminate(folder)
                return
            if host.cancelled():
                folder.control.request("stop_without_saving")
            time.sleep(POLL)
    except DreamBoothError as error:  # the interruption itself matters more
        log.warning("dreambooth: %s", error.line)


def _follow(folder: RunFolder, screen: _Screen, offset: int) -> None:
    while True:
        # The state before the events: an ending between the two is then seen as one.
        state = status(folder)
        events, offset = folder.events.read(offset)
        for event in events:
            screen.show(event)
        if state.state in ENDED and not events:
            break
        host.stop_if_interrupted()
        if not events:
            time.sleep(POLL)
    if screen.failure is not None:
        failed = screen.failure
        raise TrainingFailed(
            str(failed.get("what") or failed.get("message")),
            where=failed.get("where"),
            do=failed.get("do"),
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
        progress.say("starting the training engine")

    def show(self, event: Event) -> None:
        """Shows one event. Raises the host's exception if it was interrupted."""
        kind = event["kind"]
        if kind == "progress":
            self._at = (event.get("step", 0), event.get("steps", 0) or 1)
            self._progress.say(line_of(event))
            self._progress.show(*self._at)
        elif kind == "sample":
            self._progress.show(*self._at, _picture(self._folder.path / event["path"]))
        elif kind == "warning":
            log.warning("dreambooth: %s", event["message"])
        elif kind == "error":
            self.failure = event


def line_of(event: Event) -> str:
    """What is being done, how well, and how long it will take."""
    stage = str(event.get("stage", "train"))
    step, steps = event.get("step", 0), event.get("steps", 0)
    if stage != "train" and not steps:
        return STAGES.get(stage, stage)
    if stage != "train":
        return f"{STAGES.get(stage, stage)} {step}/{steps}"
    parts = [f"step {step}/{steps}"]
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
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
