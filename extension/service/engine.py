"""Asking the engine: by the warm process, or where a GPU has to be seen, by one of its own."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.config.describe import nest
from dreambooth_core.config.shapes import paths
from dreambooth_core.environment import locate, status
from dreambooth_core.errors import DreamBoothError, UserError, told
from dreambooth_core.hosting.warm import shared
from dreambooth_core.jobs.environment import engine_command, worker_environment
from dreambooth_core.jobs.files import to_json
from dreambooth_core.jobs.launch import CREATE_NO_WINDOW
from dreambooth_core.jobs.requests import request_file
from dreambooth_core.options import TrainConfig

from .types import Problem, Values

PATIENCE = 300.0
"""Seconds that a check may take."""

_KEY = re.compile(r"[a-z_]+(?:\[\d+\])?(?:\.[a-z_]+(?:\[\d+\])?)+")


def require_ready(root: Path) -> None:
    """Raises ``UserError`` while the engine's environment is not there."""
    now = status(locate(root))
    if not now.ready:
        raise UserError(
            f"the engine is not set up: {now.reason}", do="Set it up in the DreamBooth tab."
        )


def ask(root: Path, task: str, options: Mapping[str, Any], *, gpu: bool = False) -> dict[str, Any]:
    """What a command reports.

    Args:
        root: the clone.
        task: the command.
        options: fields of its ``Options``; paths absolute.
        gpu: whether it has to see the GPU, which the warm process does not: seconds more.

    Raises:
        UserError: the command refused.
        DreamBoothError: it failed.
    """
    require_ready(root)
    if not gpu:
        return shared(root).task(task, options)
    with request_file(task, options) as file:
        command = [*engine_command(root=root), "-m", "dreambooth_core", "task", str(file), "--json"]
        try:
            done = subprocess.run(
                command,
                cwd=root,
                env=worker_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE,
                check=False,
                creationflags=CREATE_NO_WINDOW if hasattr(subprocess, "STARTUPINFO") else 0,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DreamBoothError(f"the engine does not answer: {error}") from error
    return _answer(done)


def _answer(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = json.loads(done.stdout.decode("utf-8", errors="replace"))
    except ValueError:
        said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
        last = said[-1] if said else f"exit code {done.returncode}"
        raise DreamBoothError(f"the engine failed: {last[:300]}") from None
    if done.returncode and isinstance(answer.get("error"), dict):
        raise told(done.returncode, answer["error"])
    return answer


@contextlib.contextmanager
def settings_file(values: Values) -> Iterator[Path]:
    """Values as a file that the command line reads, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
        path = Path(folder) / "settings.json"
        path.write_text(to_json(nest(values)), encoding="utf-8")
        yield path


def problem_of(error: DreamBoothError) -> Problem:
    """An error of the engine, with the key of the value that it is about."""
    where = error.where or ""
    if "settings.json" in where:  # our own file means nothing to a person
        error = type(error)(error.what, do=error.do)
    known = set(paths(TrainConfig))
    for text in (where, error.what):
        for key in _KEY.findall(text):
            if re.sub(r"\[\d+\]", "[]", key) in known:
                return Problem(key, error.line)
    return Problem("", error.line)
