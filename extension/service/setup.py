"""The engine's environment: whether it is there, and building it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from dreambooth_core.disk.locks import FileLock
from dreambooth_core.environment import clean_environment, locate, status
from dreambooth_core.environment.plan import plan
from dreambooth_core.errors import DreamBoothError, UserError
from dreambooth_core.jobs.client import end_process
from dreambooth_core.jobs.files import read_lines
from dreambooth_core.jobs.launch import detachment

from .types import BuildLog, Environment, Plan


class Setup:
    """The environment of the engine at ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._plan: Plan | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()

    def state(self) -> Environment:
        """Whether it can be used. Takes milliseconds once the plan is known."""
        layout = locate(self.root)
        now = status(layout)
        return Environment(
            ready=now.ready,
            reason=now.reason,
            home=str(layout.home),
            building=self._building(),
            plan=None if now.ready else self._planned(),
        )

    def build(self) -> None:
        """Starts ``install.py`` as a process of its own; nothing if it runs already.

        Raises:
            UserError: it cannot be started.
        """
        with self._starting:
            if self._building():
                return
            layout = locate(self.root)
            self._file("progress").unlink(missing_ok=True)
            command = [
                *(sys.executable, str(self.root / "install.py"), "build"),
                *("--progress-file", str(self._file("progress"))),
                *("--log", str(self._file("log"))),
            ]
            try:
                layout.home.parent.mkdir(parents=True, exist_ok=True)
                with self._file("out").open("wb") as output:
                    self._process = subprocess.Popen(
                        command,
                        cwd=self.root,
                        env=clean_environment(),
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        **detachment(),
                    )
            except OSError as error:
                raise UserError(
                    f"the installer could not be started: {error.strerror or error}",
                    where=error.filename or self.root,
                ) from error

    def cancel(self) -> None:
        """Ends the installation; it leaves nothing behind, or what was there before. Nothing where
        none goes on."""
        process, lock = self._process, FileLock(locate(self.root).lock)
        if process is not None and process.poll() is None:
            end_process(process.pid, False)
        elif lock.is_held():  # begun by an earlier life of the host
            pid = lock.holder().get("pid")
            if isinstance(pid, int) and pid > 0 and pid != os.getpid():
                end_process(pid, False)

    def log(self, offset: int) -> BuildLog:
        """What the installer said since ``offset``."""
        running = self._building()
        records, offset = read_lines(self._file("progress"), offset)
        told: dict[str, Any] = {}
        lines: list[str] = []
        for record in records:
            kind = record.get("kind")
            if kind == "step":
                told = {"step": f"{record['number']}/{record['total']} {record['label']}"}
                lines.append(told["step"])
            elif kind == "progress":
                told |= {name: record[name] for name in ("done", "total", "unit")}
            elif kind in ("say", "end"):
                lines.append(str(record.get("text", "")))
                told |= {"ok": bool(record.get("ok"))} if kind == "end" else {}
        if not running and not records and offset == 0 and self._process is not None:
            lines += self._last_words()
            told["ok"] = False
        return BuildLog(lines=lines, offset=offset, running=running, **told)

    def _building(self) -> bool:
        if self._process is not None and self._process.poll() is None:
            return True
        return FileLock(locate(self.root).lock).is_held()

    def _planned(self) -> Plan:
        if self._plan is None:
            try:
                told: dict[str, Any] = plan(locate(self.root))
            except DreamBoothError as error:
                return Plan(problem=error.line)
            self._plan = Plan(
                torch=told["torch"],
                because=told["because"],
                warning=told["warning"],
                megabytes=told["download_megabytes"],
                disk_megabytes=told["disk_megabytes"],
                free_megabytes=told["free_megabytes"],
                sources=told["from"],
            )
        return self._plan

    def _last_words(self) -> list[str]:
        """What an installer said that died before it could write its progress."""
        try:
            text = self._file("out").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return text.strip().splitlines()[-5:]

    def _file(self, ending: str) -> Path:
        home = locate(self.root).home
        return home.with_name(f"{home.name}.{ending}")
