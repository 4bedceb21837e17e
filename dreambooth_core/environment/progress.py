"""How an installation tells what it does: to a person, and to a program that follows a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Protocol


class Reporter(Protocol):
    """What an installation says."""

    def say(self, text: str) -> None:
        """A line worth reading."""

    def step(self, number: int, total: int, label: str) -> None:
        """A step begins."""

    def progress(self, done: int, total: int, unit: str) -> None:
        """How far the step is: bytes (``B``) or ``packages``."""

    def end(self, ok: bool, text: str) -> None:
        """It is over; ``text`` is the line that says how."""


class Console:
    """Lines for a person: progress in place on a terminal, now and then elsewhere."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.label = ""
        self.shown = 0.0
        self.open = False

    def say(self, text: str) -> None:
        """Prints a line."""
        self._close()
        print(text, flush=True)

    def step(self, number: int, total: int, label: str) -> None:
        """Prints the step's name."""
        self.label = f"{number}/{total} {label}"
        self.shown = time.monotonic()
        self.say(self.label)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Shows how far it is, at most four times a second, or every ten seconds in a log."""
        now = time.monotonic()
        if now - self.shown < (0.25 if self.terminal else self.EVERY_S):
            return
        self.shown = now
        if unit == "B":
            text = f"    {done / 1e6:,.0f} of {total / 1e6:,.0f} MB"
        else:
            text = f"    {done} of {total} {unit}"
        if self.terminal:
            print(f"\r{text:<60}", end="", flush=True)
            self.open = True
        else:
            print(text, flush=True)

    def end(self, ok: bool, text: str) -> None:
        """Prints the last line, failures to stderr."""
        self._close()
        print(text, file=sys.stdout if ok else sys.stderr, flush=True)

    def _close(self) -> None:
        if self.open:
            print("\r" + " " * 60 + "\r", end="", flush=True)
            self.open = False


class ProgressFile:
    """One JSON object a line, appended to a file that another process follows.

    Each has ``time`` (seconds since 1970) and ``kind``: ``say`` (``text``), ``step`` (``number``,
    ``total``, ``label``), ``progress`` (``done``, ``total``, ``unit``), ``end`` (``ok``, ``text``).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("", encoding="utf-8")

    def say(self, text: str) -> None:
        """Writes a line."""
        self._write(kind="say", text=text)

    def step(self, number: int, total: int, label: str) -> None:
        """Writes that a step begins."""
        self._write(kind="step", number=number, total=total, label=label)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Writes how far it is, at most twice a second and at its end."""
        now = time.monotonic()
        if now - self.shown >= 0.5 or done == total:
            self.shown = now
            self._write(kind="progress", done=done, total=total, unit=unit)

    def end(self, ok: bool, text: str) -> None:
        """Writes how it ended."""
        self._write(kind="end", ok=ok, text=text)

    def _write(self, **fields: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": time.time(), **fields}) + "\n")


class Both:
    """Tells several reporters the same."""

    def __init__(self, *reporters: Reporter) -> None:
        self.reporters = reporters

    def say(self, text: str) -> None:
        """Passes it on."""
        for reporter in self.reporters:
            reporter.say(text)

    def step(self, number: int, total: int, label: str) -> None:
        """Passes it on."""
        for reporter in self.reporters:
            reporter.step(number, total, label)

    def progress(self, done: int, total: int, unit: str) -> None:
        """Passes it on."""
        for reporter in self.reporters:
            reporter.progress(done, total, unit)

    def end(self, ok: bool, text: str) -> None:
        """Passes it on."""
        for reporter in self.reporters:
            reporter.end(ok, text)
