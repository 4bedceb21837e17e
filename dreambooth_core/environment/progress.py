"""How an installation tells what it does: to a person, and to a program that follows a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Listener = Callable[[dict[str, Any]], None]
"""Is told one thing after the other. Each has ``kind``: ``say`` (``text``: a line worth reading),
``step`` (one begins: ``number``, ``total``, ``label``), ``progress`` (how far it is: ``done``,
``total``, and ``unit``: bytes (``B``) or ``packages``), ``end`` (``ok``, and ``text``: how it
ended)."""


class Reporter:
    """What an installation says to all who listen."""

    def __init__(self, *listeners: Listener) -> None:
        self.listeners = listeners

    def say(self, text: str) -> None:
        """A line worth reading."""
        self._tell(kind="say", text=text)

    def step(self, number: int, total: int, label: str) -> None:
        """A step begins."""
        self._tell(kind="step", number=number, total=total, label=label)

    def progress(self, done: int, total: int, unit: str) -> None:
        """How far the step is."""
        self._tell(kind="progress", done=done, total=total, unit=unit)

    def end(self, ok: bool, text: str) -> None:
        """It is over."""
        self._tell(kind="end", ok=ok, text=text)

    def _tell(self, **told: Any) -> None:
        for listener in self.listeners:
            listener(told)


class Console:
    """Lines for a person: progress in place on a terminal, now and then elsewhere."""

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.shown = 0.0
        self.open = False

    def __call__(self, told: dict[str, Any]) -> None:
        """Prints what is told; progress at most four times a second, in a log every ten seconds."""
        if told["kind"] == "progress":
            self._show(told["done"], told["total"], told["unit"])
            return
        if self.open:
            print("\r" + " " * 60 + "\r", end="", flush=True)
            self.open = False
        if told["kind"] == "step":
            self.shown = time.monotonic()
            print(f"{told['number']}/{told['total']} {told['label']}", flush=True)
        else:
            print(told["text"], file=sys.stdout if told.get("ok", True) else sys.stderr, flush=True)

    def _show(self, done: int, total: int, unit: str) -> None:
        now = time.monotonic()
        if now - self.shown < (0.25 if self.terminal else 10.0):
            return
        self.shown = now
        if unit == "B":
            text = f"    {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        else:
            text = f"    {done} of {total} {unit}"
        self.open = self.terminal
        print(
            f"\r{text:<60}" if self.terminal else text,
            end="" if self.terminal else "\n",
            flush=True,
        )


class ProgressFile:
    """One JSON object a line, with its ``time`` (seconds since 1970), in a file that another
    process follows; of progress two lines a second and the last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def __call__(self, told: dict[str, Any]) -> None:
        """Writes a line."""
        if told["kind"] == "progress":
            now = time.monotonic()
            if now - self.shown < 0.5 and told["done"] != told["total"]:
                return
            self.shown = now
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **told}) + "\n")
