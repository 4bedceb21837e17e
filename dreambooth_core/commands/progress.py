"""A run's events as a progress bar and a few lines on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from dreambooth_core.commands.console import terminal, words
from dreambooth_core.jobs import Event
from dreambooth_core.jobs.stages import stage_words

WIDE = 100
"""Columns of a terminal from which on everything is told; a line of 80 is full without."""

MEASURED = {"held_out_loss": "held-out loss", "likeness": "likeness", "score": "score"}
"""What is told of a measurement, and how."""


class EventPrinter:
    """Shows events while the ``with`` block lasts. Call it with each event."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal(stderr=True)
        self._is_wide = self.console.width >= WIDE
        self.progress = Progress(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=24 if self._is_wide else 8),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {}
        self._uncounted: TaskID | None = None
        """What is being done and cannot be counted; shown until something else is."""

    def __enter__(self) -> EventPrinter:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        kind = event["kind"]
        if kind in ("started", "progress"):
            self._advance(event)
        elif kind == "warning":
            self.console.print(words(("warning", "yellow"), f": {event['message']}"))
        elif kind == "measured":
            best = " (the best so far)" if event["best"] == event["step"] else ""
            told = [f"{word} {event[n]:.4f}" for n, word in MEASURED.items() if n in event]
            self.console.print(words(f"step {event['step']}: {', '.join(told)}{best}"))
        elif kind == "saved" and event.get("result"):
            self.console.print(words(f"saved {event['path']}"))

    def _advance(self, event: Event) -> None:
        if event.get("compile_seconds"):
            self.console.print(f"compiling took {event['compile_seconds']:.0f} s so far")
        stage = event.get("stage", "train")
        done, total = event.get("step", 0), event.get("steps", 0)
        if self._uncounted is not None:
            self.progress.remove_task(self._uncounted)
            self._uncounted = None
        if not total:
            self._uncounted = self.progress.add_task(stage_words(stage), total=None, note="")
            return
        if stage not in self._tasks:
            self._tasks[stage] = self.progress.add_task(stage_words(stage), total=total, note="")
        self.progress.update(
            self._tasks[stage], completed=done, total=total, note=self._note(event)
        )

    def _note(self, event: Event) -> str:
        if event.get("loss") is None:
            return ""
        rate = f"  lr {event['lr']:.1e}" if self._is_wide else ""
        return f"loss {event['loss']:.4f}{rate}  {event.get('seconds_per_step') or 0.0:.2f} s/step"
