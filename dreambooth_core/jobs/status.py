"""What state a run is in, read from its folder alone."""

from __future__ import annotations

import copy
import os
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.jobs.events import ENDINGS, Event
from dreambooth_core.jobs.folder import RunFolder, sanitise
from dreambooth_core.jobs.queue import STAGE

STATES = ("waiting", "running", "stopped", "finished", "failed", "lost")
STARTING = "starting"
TRAINING = "train"
"""The stage of events that name none."""

GRACE = 120.0
"""Seconds in which a started worker must have taken its lock; slow disks and virus scanners."""


@dataclass
class RunSummary:
    """A run at a glance. Times are seconds since 1970."""

    name: str
    path: str
    state: str
    """waiting (made, just started, or in the queue), running, stopped (on request), finished,
    failed, or lost (its worker died without a word)."""
    stage: str = ""
    """What is being done: ``train``, or a preparation (``class_images``, ``latents`` …)."""
    stage_step: int = 0
    stage_steps: int = 0
    step: int = 0
    """Of training, whatever the stage."""
    steps: int = 0
    loss: float | None = None
    best_step: int | None = None
    """The step whose result is the best so far, where that is measured."""
    created: float | None = None
    started: float | None = None
    updated: float | None = None
    ended: float | None = None
    message: str = ""
    """Why it failed, stopped or was lost, in a line."""
    warnings: int = 0
    results: list[str] = field(default_factory=list)
    """Paths of what it made, relative to ``path``."""
    samples: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def live(self) -> bool:
        """Whether a worker is, or is about to be, at work."""
        return self.state == "running"


@dataclass
class _Digest:
    """What the events say so far. Grows with the file, so that polling stays cheap."""

    told: RunSummary
    """Without a state: that depends on more than the events."""
    offset: int = 0
    identity: tuple[int, bytes] = (0, b"")
    trains: bool = False
    """Whether all before training is done."""
    last: Event | None = None
    """The latest event that the state depends on."""
    settled: Event | None = None
    """The ending of the latest start that was accepted."""

    def add(self, event: Event) -> None:
        kind, told = event["kind"], self.told
        when = event.get("time")
        told.updated = when if isinstance(when, (int, float)) else told.updated
        told.created = told.created if told.created is not None else told.updated
        self.last = event
        if kind == "started":
            told.started, told.message, self.settled = told.updated, "", None
        self.trains = kind == "started" or (self.trains and kind not in ENDINGS)
        if kind in ("started", "progress"):
            self._advance(event)
        elif kind == "sample":
            _append(told.samples, event.get("path"))
        elif kind == "saved" and event.get("result", False):
            _append(told.results, event.get("path"))
        elif kind == "measured":
            told.best_step = _count(event.get("best"))
        elif kind == "warning":
            told.warnings += 1
        elif kind in ENDINGS:
            told.message = str(event.get("message") or "")
            results = event.get("results")
            for path in results if isinstance(results, list) else []:
                _append(told.results, path)
            if event.get("refused") and self.settled is not None:
                self.last = self.settled  # it changed nothing: the run is what it was
            self.settled = self.last

    def _advance(self, event: Event) -> None:
        told = self.told
        step, steps = _count(event.get("step")), _count(event.get("steps"))
        told.stage = str(event.get("stage") or TRAINING)
        told.stage_step, told.stage_steps = step, steps
        if told.stage != TRAINING:
            if self.trains and steps and step >= steps:
                told.stage = TRAINING  # what training was interrupted for is done
            return
        told.step, told.steps = step, steps or told.steps
        loss = event.get("loss")
        if isinstance(loss, (int, float)):
            told.loss = float(loss)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _append(paths: list[str], path: Any) -> None:
    if isinstance(path, str):
        if path in paths:
            paths.remove(path)
        paths.append(path)


_digests: dict[Path, _Digest] = {}
_digesting = threading.Lock()


def status(folder: str | os.PathLike[str]) -> RunSummary:
    """The present state of one run.

    Raises:
        UserError: there is no such run.
    """
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise UserError("no such run", where=run.path, do="'dreambooth runs' lists them.")
    # The lock first: a worker writes its ending before it lets go, never after.
    held = run.lock.is_held()
    digest = _digest(run)
    start, exited = run.control.last_start()
    # What stands there may be of an earlier worker than that of the latest start.
    silent = start if start is not None and digest.offset <= _number(start.get("events")) else None
    state, message = ("running", "") if held else _state(run, digest, silent, exited)
    if state == "lost" and run.lock.is_held():  # it came up between the two looks
        state, message = "running", ""
    told = digest.told
    if state == "running" and told.stage == STAGE:
        state, message = "waiting", f"in the queue, {told.stage_steps} before it"
    if state in ("waiting", "running") and silent is not None:
        told.stage, told.stage_step, told.stage_steps = STARTING, 0, 0
    told.state, told.message = state, message
    told.created = told.created if told.created is not None else _birth(run)
    told.ended = told.updated if state in ("finished", "stopped", "failed", "lost") else None
    # Those of old steps may have been deleted since.
    told.results = [path for path in told.results if (run.path / path).exists()]
    return told


def list_runs(root: str | os.PathLike[str]) -> list[RunSummary]:
    """The runs below ``root``, the latest first; none if there is no such folder."""
    base = Path(os.path.expanduser(root))
    try:
        folders = [path for path in base.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", where=base) from error
    found: list[RunSummary] = []
    for path in folders:
        run = RunFolder(path)
        if run.exists():
            found.append(status(run))
    return sorted(found, key=lambda run: (run.updated or run.created or 0.0, run.name))[::-1]


def find_run(root: str | os.PathLike[str], name: str) -> RunFolder:
    """The run that a person names: by its name below ``root``, or by the path of its folder.

    Raises:
        UserError: there is none; the nearest name is given.
    """
    base = Path(os.path.expanduser(root))
    if sanitise(name) == name and RunFolder(base / name).exists():
        return RunFolder(base / name)
    if RunFolder(name).exists():
        return RunFolder(name)
    from dreambooth_core.config.suggest import nearest  # late: few need it

    near = nearest(name, [run.name for run in list_runs(base)])
    do = f"Did you mean {near}?" if near else "'dreambooth runs' lists them."
    raise UserError(f"no run is named {name!r}", where=base, do=do)


def _digest(run: RunFolder) -> _Digest:
    path = run.events_file
    with _digesting:
        nothing = _Digest(RunSummary(run.name, str(run.path), ""))
        try:
            facts = path.stat()
            # The first event tells when: another run's file may get the number of a deleted one.
            nothing.identity = (facts.st_ino, _head(path))
        except OSError:
            _digests.pop(path, None)
            return nothing
        digest = _digests.get(path)
        if digest is None or digest.identity != nothing.identity or facts.st_size < digest.offset:
            digest = _digests[path] = nothing
        events, digest.offset = run.events.read(digest.offset)
        for event in events:
            digest.add(event)
        return copy.deepcopy(digest)


def _head(path: Path) -> bytes:
    """How a file begins; of what is no file, nothing."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(64)


def _state(
    run: RunFolder, digest: _Digest, silent: Event | None, exited: Event | None
) -> tuple[str, str]:
    """State and message of a run that nobody is at work on.

    Args:
        silent: the latest start, if its worker has said nothing yet.
        exited: the end of that start's process.
    """
    if silent is not None:
        if exited is not None:
            code = exited.get("code")
            return "lost", f"the worker ended with code {code} at once; see {run.worker_log}"
        if time.time() - _number(silent.get("time")) < GRACE:
            return "waiting", ""
        return "lost", f"the worker did not come up; see {run.worker_log}"
    last = digest.last
    if last is None:
        return "waiting", ""
    if last["kind"] == "error":
        return "failed", digest.told.message
    if last["kind"] == "finished":
        return ("stopped" if last.get("outcome") == "stopped" else "finished"), digest.told.message
    return "lost", "the worker died: no memory left, a power cut, or it was killed"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def _birth(run: RunFolder) -> float | None:
    for path in (run.config, run.control_file, run.path):
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return None
