"""Adapters and models: inspect, merge, bake, extract, convert, resize."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreambooth_core.errors import DreamBoothError, Stopped, UserError
from dreambooth_core.hosting.warm import Helper, shared

from ..host.base import Host
from . import engine
from .arguments import OUTPUT, TOOLS, arguments, options
from .paths import Paths, free_name
from .types import Base, Task, ToolOption

ADAPTERS = (".safetensors", ".pt", ".ckpt", ".bin")
MODELS = (".safetensors", ".ckpt")
KEPT = 50
"""Tasks that are remembered."""


@dataclass
class _Running:
    task: Task
    since: float
    cancelled: threading.Event = field(default_factory=threading.Event)


class Tools:
    """The command line's tools, one at a time, in a process of their own."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root = root
        self.host = host
        # Not the warm process that light questions go to: they need not wait for a long merge.
        self._helper = Helper(root)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dreambooth-tools")
        self._tasks: dict[str, _Running] = {}
        self._changing = threading.Lock()

    def all(self) -> dict[str, list[ToolOption]]:
        """What each tool takes."""
        return {tool: options(tool) for tool in TOOLS}

    def adapters(self) -> list[Base]:
        """The Lora folder's files, by name."""
        folder = self.host.folders().loras
        files = [path for path in folder.rglob("*") if path.suffix in ADAPTERS]
        return [Base(p.relative_to(folder).as_posix(), str(p)) for p in sorted(files)]

    def inspect(self, file: Path) -> dict[str, Any]:
        """What a file is."""
        engine.require_ready(self.root)
        return shared(self.root).run("inspect", file)

    def start(self, tool: str, values: Mapping[str, Any], paths: Paths) -> str:
        """Starts a tool; returns its task's id.

        Raises:
            UserError: a value is missing or wrong, or the engine is not set up.
        """
        engine.require_ready(self.root)
        if tool not in TOOLS:
            raise UserError(f"there is no tool named {tool!r}", do=f"Known: {', '.join(TOOLS)}.")
        names = _Names(self.host, paths, self.adapters())
        argv = arguments(tool, values, file=names.file, output=names.output_of(tool, values))
        with self._changing:
            number = secrets.token_hex(6)
            self._tasks[number] = _Running(Task(number, tool, "waiting"), time.time())
            for old in list(self._tasks)[:-KEPT]:
                if self._tasks[old].task.state not in ("waiting", "running"):
                    del self._tasks[old]
        self._pool.submit(self._work, number, argv)
        return number

    def task(self, number: str) -> Task:
        """How a task is doing. Raises ``UserError`` for one that is not known."""
        return self._find(number).task

    def tasks(self) -> list[Task]:
        """The latest first."""
        with self._changing:
            return [running.task for running in reversed(self._tasks.values())]

    def cancel(self, number: str) -> None:
        """Ends a task."""
        self._find(number).cancelled.set()

    def _find(self, number: str) -> _Running:
        with self._changing:
            if number not in self._tasks:
                raise UserError("there is no such task")
            return self._tasks[number]

    def _work(self, number: str, argv: list[str]) -> None:
        running = self._find(number)

        def tell(**changes: Any) -> None:
            running.task = replace(running.task, **changes)

        if running.cancelled.is_set():
            tell(state="cancelled")
            return
        tell(state="running")
        try:
            told = self._helper.run(
                *argv,
                progress=lambda said: tell(message=str(said.get("message", ""))),
                cancelled=running.cancelled.is_set,
            )
        except Stopped:
            tell(state="cancelled", message="")
        except DreamBoothError as error:
            tell(state="failed", message=error.line)
        except Exception as error:
            tell(state="failed", message=f"unexpected {type(error).__name__}: {error}")
            raise
        else:
            files = told.get("files") or [told["file"]] if "file" in told else told.get("files", [])
            self.host.refresh_networks()
            tell(state="done", message="", progress=1.0, result=told, files=list(files))


class _Names:
    """From what the user wrote to files."""

    def __init__(self, host: Host, paths: Paths, adapters: list[Base]) -> None:
        self.host = host
        self.paths = paths
        self.known = {one.name: one.path for one in adapters}
        self.known |= {Path(one.name).stem: one.path for one in adapters}
        for checkpoint in host.checkpoints():
            self.known.setdefault(checkpoint.name, str(checkpoint.path))

    def file(self, text: str) -> str:
        """A file to read: the host's name for it, or a path."""
        return self.known.get(text) or str(self.paths.inside(text, "the file"))

    def output_of(self, tool: str, values: Mapping[str, Any]) -> str:
        """The file to write: a new one, where the host lists it unless a folder is named."""
        text = str(values.get(OUTPUT[tool]) or "").strip() if tool in OUTPUT else ""
        if not text:
            if tool in OUTPUT:
                raise UserError("the result has no name", do="Name it.")
            return ""
        folder, name = self._place(tool, text, values)
        ending = next((end for end in MODELS if name.endswith(end)), "")
        stem = name.removesuffix(ending)
        if not ending and not (tool == "convert" and text.endswith(("/", "\\"))):
            ending = ".safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"not writable: {error.strerror or error}", where=folder) from error
        return str(free_name(folder, stem, ending))

    def _place(self, tool: str, text: str, values: Mapping[str, Any]) -> tuple[Path, str]:
        here = self.host.folders()
        bare = text.rstrip("/\\")
        if "/" in bare or "\\" in bare:
            path = self.paths.inside(bare, "the result")
            return path.parent, path.name
        if tool == "convert" and text != bare:
            return here.home / "models", bare  # the host would list a folder's parts
        source = str(values.get("source", ""))
        adapter = tool in ("merge", "extract", "resize") or self.known.get(source, "").startswith(
            str(here.loras)
        )
        return (here.loras if adapter else here.checkpoints), bare
