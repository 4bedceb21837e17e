"""The engine's commands, run by a process that stays warm: no start-up after the first.

::

    helper = shared()
    report = helper.task("resize", {"source": "/a.safetensors", "target": "/b.safetensors"})

The process belongs to the engine's environment, sees no GPU (so it holds none of its memory),
leaves by itself after idle minutes or with its parent, and is started again when needed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from dreambooth_core.errors import DreamBoothError, Stopped, UserError, told
from dreambooth_core.jobs.environment import clone, engine_command, worker_environment
from dreambooth_core.jobs.launch import CREATE_NO_WINDOW, apart, not_started
from dreambooth_core.jobs.requests import request_file

logger = logging.getLogger(__name__)

MODULE = ("-m", "dreambooth_core.warm")
IDLE = 300.0
"""Seconds without a command after which the process leaves."""

GRACE = 3.0
"""Seconds that a cancelled command gets before its process is ended."""

POLL = 0.05
NO_GPU = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Set to -1: Windows drops variables that are empty."""

Progress = Callable[[dict[str, Any]], None]


class Helper:
    """A warm process of the engine at ``root``; started by the first command. One that is to see
    the ``gpu`` keeps some of its memory until it is closed.

    Safe to use from several threads: commands wait for each other.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        *,
        idle: float = IDLE,
        arguments: Sequence[str] = MODULE,
        gpu: bool = False,
    ) -> None:
        self.root = Path(root) if root else clone()
        self._idle = idle
        self._arguments = arguments
        self._gpu = gpu
        self._turn = threading.Lock()
        self._process: _Process | None = None
        self._last_id = 0

    def run(
        self,
        *argv: str | os.PathLike[str],
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Runs ``dreambooth ARGV --json`` and returns what it reports.

        Args:
            argv: the command and its arguments; paths absolute.
            progress: called with ``{"message": line}`` for what the command tells meanwhile.
            cancelled: asked some times a second. True, or an exception (which comes out of
                here), cancels the command.

        Raises:
            UserError: the command refused; its one line.
            Stopped: it was cancelled.
            DreamBoothError: it failed, or its process died.
        """
        arguments = [os.fspath(argument) for argument in argv]
        if "--json" not in arguments:
            arguments.append("--json")
        with self._turn:
            self._last_id += 1
            request = {"id": self._last_id, "argv": arguments}
            for last in (False, True):
                try:
                    return self._ask(request, progress, cancelled)
                except _NotAccepted as unheard:  # it was just leaving, or does not start
                    self.close()
                    if last:
                        raise unheard.reason from None
        raise AssertionError("unreachable")

    def task(
        self,
        name: str,
        options: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> dict[str, Any]:
        """Does a task of ``commands/task.py``: as :meth:`run`, and nothing of the options can be
        taken for a flag.

        Args:
            name: the command.
            options: fields of its ``Options``; paths absolute.
        """
        with request_file(name, options) as file:
            return self.run("task", file, progress=progress, cancelled=cancelled)

    def close(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.end()

    @property
    def pid(self) -> int | None:
        """The process's number, or None while there is none."""
        process = self._process
        return process.popen.pid if process is not None and process.alive else None

    def _ask(
        self,
        request: dict[str, Any],
        progress: Progress | None,
        cancelled: Callable[[], bool] | None,
    ) -> dict[str, Any]:
        if self._process is None or not self._process.alive:
            self.close()
            arguments = [*self._arguments, "--idle", str(self._idle)]
            self._process = _Process(self.root, arguments, gpu=self._gpu)
        process = self._process
        if not process.send(request):
            raise _NotAccepted(process.death())
        accepted = False
        try:
            while True:
                message = process.receive(POLL)
                if message is None and not process.alive:
                    raise process.death() if accepted else _NotAccepted(process.death())
                if message is None:
                    if cancelled is not None and cancelled():
                        raise Stopped("stopped")
                elif message.get("id") != request["id"]:
                    continue
                elif "code" in message:
                    break
                elif "progress" in message and progress is not None:
                    progress(message["progress"])
                accepted = True if message else accepted
        except _NotAccepted:
            raise
        except BaseException:
            # Also what the callbacks raise, which is how some hosts interrupt. After an answer
            # or a death nothing is left to cancel.
            self._cancel(process, request["id"])
            raise
        return _result(message)

    def _cancel(self, process: _Process, number: int) -> None:
        """Asks to stop, then insists; nothing of the command is left running."""
        process.send({"cancel": number})
        deadline = time.monotonic() + GRACE
        while process.alive and time.monotonic() < deadline:
            message = process.receive(POLL)
            if message and message.get("id") == number and "code" in message:
                return
        self.close()


class _NotAccepted(Exception):
    """The process died before it took the command up: it can be asked again."""

    def __init__(self, reason: DreamBoothError) -> None:
        super().__init__(reason.line)
        self.reason = reason


class _Process:
    """One life of the warm process."""

    def __init__(self, root: Path, arguments: Sequence[str], *, gpu: bool) -> None:
        command = [*engine_command(root=root), *arguments]
        env = worker_environment() | dict.fromkeys(() if gpu else NO_GPU, "-1")
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives with the process)
        # Ctrl+C in the host's terminal is the host's: no session or console is shared.
        try:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                cwd=root,
                env=env,
                **apart(CREATE_NO_WINDOW),
            )
        except OSError as error:
            self._log.close()
            raise not_started(command, error) from error
        self._last_words = ""
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, name="dreambooth-warm", daemon=True)
        self._listener.start()

    @property
    def alive(self) -> bool:
        """Whether something may still come from it."""
        return self._listener.is_alive() or not self._messages.empty()

    def send(self, message: dict[str, Any]) -> bool:
        """Whether the message could be handed over."""
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
            self.popen.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def receive(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None when none came in time."""
        with contextlib.suppress(queue.Empty):
            return self._messages.get(timeout=seconds)
        return None

    def death(self) -> DreamBoothError:
        """Why it is gone, as far as it said."""
        self._listener.join()
        code, said = self.popen.wait(), self._last_words
        if said:
            logger.error("the warm process ended:\n%s", said)
        last = said.splitlines()[-1].strip()[:300] if said else f"exit code {code}"
        if "No module named" in last:
            return UserError(
                f"the engine's environment is not complete: {last}",
                do="Run 'python install.py'.",
            )
        return DreamBoothError(f"the engine's helper process ended unexpectedly: {last}")

    def end(self) -> None:
        """Ends the process, also in the midst of something."""
        with contextlib.suppress(OSError):
            self.popen.kill()
        self.popen.wait()
        self._listener.join(1.0)

    def _listen(self) -> None:
        """Takes what comes until the process is gone, by itself or ended, and clears up."""
        assert self.popen.stdin is not None and self.popen.stdout is not None
        with self._log, self.popen.stdout:
            with contextlib.suppress(OSError, ValueError):
                for line in self.popen.stdout:
                    self._messages.put(json.loads(line))
            self.popen.wait()
            self._log.seek(0)
            self._last_words = self._log.read().decode("utf-8", "replace").strip()
        with contextlib.suppress(OSError):
            self.popen.stdin.close()


def _result(message: dict[str, Any]) -> dict[str, Any]:
    """The answer. Raises what the command raised."""
    if message["code"] == 0:
        answer: dict[str, Any] = message["answer"]
        return answer
    if message.get("details"):
        logger.error("a command failed:\n%s", message["details"])
    raise told(message["code"], message["error"])


_SHARED: dict[Path, Helper] = {}
_SHARING = threading.Lock()


def shared(root: str | os.PathLike[str] | None = None) -> Helper:
    """The helper of this process for the engine at ``root`` (by default this engine)."""
    place = Path(root).resolve() if root else clone()
    with _SHARING:
        return _SHARED.setdefault(place, Helper(place))
