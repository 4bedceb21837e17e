"""How a run is doing: its folder's own summary, and what the page wants to know besides."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import flatten
from dreambooth_core.config.reading import read_file
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, list_runs, status
from dreambooth_core.jobs.queue import STAGE
from dreambooth_core.options import TrainConfig

from .handover import Handover
from .results import Results
from .types import Status, Values

ALIKE = (
    "base.model",
    "method.kind",
    "data.resolution",
    "run.batch_size",
    "run.gradient_accumulation_steps",
)
"""Runs that agree in these take about as long for a step."""


@dataclass
class _Facts:
    """What a run's events say besides its summary; grows with the file."""

    offset: int = 0
    pace: float | None = None
    memory: int | None = None
    compiling: float | None = None
    identity: tuple[int, int] = (0, 0)
    config: Values = field(default_factory=dict)
    config_time: int = -1


class Watcher:
    """Tells the status of runs; remembers what it has read."""

    def __init__(self, handover: Handover, results: Results) -> None:
        self.handover = handover
        self.results = results
        self._facts: dict[Path, _Facts] = {}
        self._reading = threading.Lock()

    def status(self, run: RunFolder) -> Status:
        """A run at a glance."""
        with self._reading:
            facts = self._read(run)
        one = status(run)
        waits = self.handover.waits(run)
        message = one.message or (self.handover.words if waits else "")
        live = one.state in ("running", "waiting")
        left = None
        if one.state == "running" and one.stage == "train" and facts.pace and one.steps:
            left = facts.pace * max(one.steps - one.step, 0)
        told = vars(one) | {
            "message": message,
            "samples": [str(run.path / path) for path in one.samples],
            "results": [str(run.path / path) for path in one.results],
        }
        return Status(
            **told,
            seconds_per_step=facts.pace,
            seconds_left=left,
            memory_bytes=facts.memory,
            compile_seconds=facts.compiling,
            ahead=one.stage_steps if one.state == "waiting" and one.stage == STAGE else 0,
            published=[each.name for each in self.results.published(run)],
            method=str(facts.config.get("method.kind", "")),
            base=str(facts.config.get("base.model", "")),
            host=self.handover.words if live else self.handover.trouble,
        )

    def forecast(self, runs: Path, values: Values, steps: Any) -> float | None:
        """Seconds that ``steps`` take, by the pace of the latest run like it."""
        if not isinstance(steps, int):
            return None
        for one in list_runs(runs):
            run = RunFolder(one.path)
            with self._reading:
                facts = self._read(run)
            if facts.pace and all(facts.config.get(k) == values.get(k) for k in ALIKE):
                return facts.pace * steps
        return None

    def _read(self, run: RunFolder) -> _Facts:
        facts = self._facts.setdefault(run.path, _Facts())
        try:
            found = run.events_file.stat()
            if (found.st_dev, found.st_ino) != facts.identity or found.st_size < facts.offset:
                self._facts[run.path] = facts = _Facts(identity=(found.st_dev, found.st_ino))
        except OSError:
            self._facts[run.path] = facts = _Facts()
        events, facts.offset = run.events.read(facts.offset)
        for event in events:
            pace, memory = event.get("seconds_per_step"), event.get("measured_bytes")
            facts.pace = float(pace) if isinstance(pace, (int, float)) else facts.pace
            facts.memory = memory if isinstance(memory, int) else facts.memory
            compiling = event.get("compile_seconds")
            if isinstance(compiling, (int, float)):
                facts.compiling = float(compiling)
        self._read_config(run, facts)
        return facts

    @staticmethod
    def _read_config(run: RunFolder, facts: _Facts) -> None:
        try:
            changed = run.config.stat().st_mtime_ns
            if changed != facts.config_time:
                facts.config = flatten(read_file(run.config, TrainConfig, {}))
                facts.config_time = changed
        except (OSError, UserError):  # being written, or of another version
            return
