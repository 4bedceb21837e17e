"""What a run looks like while it trains: numbers, curve and images. No gradio in here."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dreambooth_core.hosting.curves import Curves
from dreambooth_core.jobs.stages import stage_words

from .curve import loss_curve, measured_curves
from .html import Html, bar, chip, div, duration, join, note, picture, size, span, tag, tiles

STATES = {
    "waiting": "waiting",
    "running": "running",
    "stopped": "stopped",
    "finished": "finished",
    "failed": "failed",
    "lost": "lost",
}

MOST_PICTURES = 12


class Source(Protocol):
    """What is needed of the service."""

    def events(self, name: str, offset: int = 0) -> Any:
        """The run's events since ``offset``, with its status."""


@dataclass
class Watched(Curves):
    """A run as its events tell it so far."""

    offset: int = 0
    lr: float | None = None
    warnings: list[str] = field(default_factory=list)

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes one event into account."""
        super().add(event)
        kind = event.get("kind")
        if kind == "progress" and event.get("stage", "train") == "train":
            self.lr = event.get("lr", self.lr)
        elif kind == "warning":
            message = str(event.get("message", ""))
            if message and message not in self.warnings:
                self.warnings.append(message)


class Watcher:
    """Reads each run's events once, however many pages ask."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._runs: dict[str, Watched] = {}
        self._turn = threading.Lock()

    def look(self, name: str) -> tuple[Any, Watched]:
        """The run's status and all that was told so far.

        Raises:
            UserError: there is no such run.
        """
        with self._turn:
            run = self._runs.setdefault(name, Watched())
            news = self._source.events(name, run.offset)
            if news.offset < run.offset:  # deleted, and another made by that name
                run = self._runs[name] = Watched()
                news = self._source.events(name, 0)
            for event in news.events:
                run.add(event)
            run.offset = news.offset
            return news.status, run


def nothing() -> Html:
    """The panel before there is any run."""
    return div(
        "db-live db-empty",
        div("db-empty-title", "Nothing is training yet"),
        div("db-empty-text", "Choose images, check, and train: everything appears here."),
        data_live="0",
    )


def panel(status: Any, run: Watched, now: float | None = None) -> Html:
    """The run at a glance, live or ended."""
    return div(
        "db-live",
        _head(status),
        _progress(status),
        _numbers(status, run, time.time() if now is None else now),
        loss_curve(run.points, run.steps or status.steps) if len(run.points) > 1 else "",
        *_measured(status, run),
        _host(status),
        _message(status),
        _warnings(run.warnings),
        data_live="1" if status.live else "0",
        data_state=status.state,
        data_run=status.name,
        data_step=status.step,
    )


def _head(status: Any) -> Html:
    about = " · ".join(filter(None, (status.method, Path(status.base).name)))
    return div(
        "db-head",
        span("db-run-name", status.name),
        chip(status.state, STATES.get(status.state)),
        span("db-about", about),
    )


def _progress(status: Any) -> Html:
    training = not status.live or status.stage in ("", "train")
    step, steps = (
        (status.step, status.steps) if training else (status.stage_step, status.stage_steps)
    )
    words: list[Any] = []
    if status.live:
        words.append(span("db-stage-name", _stage(status.stage)))
    if status.state == "waiting" and status.ahead:
        words += [span("db-count", status.ahead), span("", "before it")]
    elif steps:
        words += [span("db-count", f"{step} / {steps}"), "" if status.live else span("", "steps")]
    if status.live and status.seconds_left is not None and training:
        words += [span("db-left", duration(status.seconds_left)), span("", "remaining")]
    share = step / steps if steps else 0.0
    return div(
        "db-progress",
        div("db-stage", *words) if status.live or steps else "",
        bar(1.0 if status.state == "finished" else share, busy=status.live),
    )


def _stage(stage: str) -> str:
    words = stage_words(stage or "starting")
    return words[:1].upper() + words[1:]


def _numbers(status: Any, run: Watched, now: float) -> Html:
    rows: list[tuple[str, object, str]] = []
    if status.loss is not None:
        rows.append(("Loss", f"{status.loss:.4f}", ""))
    if status.best_step is not None:
        rows.append(("Best step", status.best_step, ""))
    pace = status.seconds_per_step
    if pace:
        rows.append(
            ("Pace", f"{pace:.2f}", "s/step")
            if pace >= 1
            else ("Pace", f"{1 / pace:.1f}", "steps/s")
        )
    if status.compile_seconds:
        rows.append(("Compiling took", duration(status.compile_seconds), ""))
    if run.lr:
        rows.append(("Learning rate", f"{run.lr:.2e}", ""))
    if status.memory_bytes:
        rows.append(("Memory, peak", size(status.memory_bytes), ""))
    if status.started:
        end = now if status.live else (status.ended or status.updated or now)
        rows.append(("Time", duration(end - status.started), ""))
    return tiles(rows) if rows else Html("")


def _measured(status: Any, run: Watched) -> list[Html]:
    """What the saved steps were found to be, the best of them marked."""
    drawn = measured_curves(run.measured, run.steps or status.steps, status.best_step)
    return [
        join([curve, div("db-legend", *(span(f"db-of {cls}", name) for cls, name in legend))])
        for curve, legend in drawn
    ]


def _host(status: Any) -> Html | str:
    """What the host gave up for the run, or what went wrong when it got that back."""
    if not status.host:
        return ""
    model = [span("", "The WebUI's model:"), " ", span("", status.host), ". "]
    if not status.live:
        return note("warning", *model)
    return note("info", *model, span("", "It comes back when training ends."))


def _warnings(warnings: Sequence[str]) -> Html | str:
    """One is shown; several are folded."""
    if len(warnings) < 2:
        return join([note("warning", warning) for warning in warnings])
    title = tag("summary", span("db-count", len(warnings)), " ", span("", "warnings"))
    items = [tag("li", warning) for warning in warnings]
    return tag("details", title, tag("ul", *items), cls="db-skipped db-note db-note-warning")


def _message(status: Any) -> Html | str:
    if not status.message:
        return ""
    kind = {"failed": "wrong", "lost": "wrong", "finished": "good"}.get(status.state, "info")
    return note(kind, status.message)


def pictures(paths: Sequence[str], side: int = 256) -> Html:
    """The latest validation images, the newest first."""
    shown = list(paths)[-MOST_PICTURES:][::-1]
    if not shown:
        return Html("")
    figures = [
        picture(path, side=side, caption=_caption(path), title=Path(path).name) for path in shown
    ]
    return join([tag("h4", "Samples"), div("db-pictures db-large", *figures)])


def _caption(path: str) -> str:
    """``step 120`` out of the file's name."""
    digits = "".join(c if c.isdigit() else " " for c in Path(path).stem).split()
    return f"{int(digits[0])}" if digits else Path(path).stem
