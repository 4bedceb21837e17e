"""Adapters and models: inspect, merge, bake, extract, convert, resize."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreambooth_core.commands import caption, evaluate
from dreambooth_core.commands.options import from_request
from dreambooth_core.errors import DreamBoothError, Stopped, UserError
from dreambooth_core.hosting.warm import Helper, shared
from dreambooth_core.jobs import sanitise

from ..host.base import Host
from . import engine
from .paths import Paths, free_name
from .requests import TOOLS, options, request
from .types import Base, Task, ToolOption

ADAPTERS = (".safetensors", ".pt", ".ckpt", ".bin")
MODELS = (".safetensors", ".ckpt")
LOOKING: dict[str, type] = {"evaluate": evaluate.Options, "caption": caption.Options}
"""What looks at images; it has forms of its own."""
KEPT = 50
"""Tasks that are remembered."""


@dataclass
class _Running:
    task: Task
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
        return shared(self.root).task("inspect", {"file": file})

    def start(self, tool: str, values: Mapping[str, Any], paths: Paths) -> str:
        """Starts a tool; returns its task's id.

        Raises:
            UserError: a value is missing or wrong, or the engine is not set up.
        """
        engine.require_ready(self.root)
        return self._begin(tool, request(tool, values, _Files(self.host, paths, self.adapters())))

    def begin(self, tool: str, asked: Mapping[str, Any]) -> str:
        """Starts one of :data:`LOOKING`; returns its task's id.

        Args:
            asked: options of the command, its paths looked at.

        Raises:
            UserError: a value is wrong, or the engine is not set up.
        """
        engine.require_ready(self.root)
        typed: Any = from_request(LOOKING[tool], asked)
        return self._begin(tool, {name: getattr(typed, name) for name in asked})

    def _begin(self, tool: str, asked: dict[str, Any]) -> str:
        with self._changing:
            number = secrets.token_hex(6)
            self._tasks[number] = _Running(Task(number, tool, "waiting"))
            for old in list(self._tasks)[:-KEPT]:
                if self._tasks[old].task.state not in ("waiting", "running"):
                    del self._tasks[old]
        self._pool.submit(self._work, number, tool, asked)
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

    def _work(self, number: str, tool: str, asked: dict[str, Any]) -> None:
        running = self._find(number)

        def tell(**changes: Any) -> None:
            running.task = replace(running.task, **changes)

        if running.cancelled.is_set():
            tell(state="cancelled")
            return
        tell(state="running")
        try:
            told = self._helper.task(
                tool,
                asked,
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
            files = files.values() if isinstance(files, dict) else files
            self.host.refresh_networks()
            tell(state="done", message="", progress=1.0, result=told, files=list(files))


class _Files:
    """From what somebody wrote to files that may be used."""

    def __init__(self, host: Host, paths: Paths, adapters: list[Base]) -> None:
        self.host = host
        self.paths = paths
        self.known = {one.name: one.path for one in adapters}
        self.known |= {Path(one.name).stem: one.path for one in adapters}
        for checkpoint in host.checkpoints():
            self.known.setdefault(checkpoint.name, str(checkpoint.path))

    def read(self, text: str, kind: str) -> Path:
        """A file to read: the host's name for it, or a path."""
        known = self.known.get(text)
        return Path(known) if known else self.paths.read(text, kind, "the file")

    def write(self, text: str, kind: str, *, beside: Path | None) -> Path:
        """The file to write: a new one, where the host lists it unless a folder is named."""
        folder, name = self._place(text, kind, beside)
        ending = next((end for end in MODELS if name.endswith(end)), "")
        stem = sanitise(name.removesuffix(ending))
        if not ending and not (kind == "result" and text.endswith(("/", "\\"))):
            ending = ".safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return free_name(folder, stem, ending)
        except OSError as error:
            raise UserError(f"not writable: {error.strerror or error}", where=folder) from error

    def _place(self, text: str, kind: str, beside: Path | None) -> tuple[Path, str]:
        here = self.host.folders()
        bare = text.strip().rstrip("/\\")
        if "/" in bare or "\\" in bare:
            path = self.paths.write(bare, kind, "the result")
            return path.parent, path.name
        if kind == "result" and text != bare:
            return here.diffusers, bare
        made_of_adapter = beside is not None and here.loras in beside.parents
        adapter = kind == "adapter result" or (kind == "result" and made_of_adapter)
        return (here.loras if adapter else here.checkpoints), bare
