"""How children are started, with nothing of the host in them, and ended when the user says stop."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO, Any

from dreambooth_core.errors import DreamBoothError

HOST_VARIABLES = frozenset(
    {
        # Where Python looks for modules and for itself.
        *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONSAFEPATH", "PYTHONUSERBASE"),
        *("PYTHONOPTIMIZE", "PYTHONEXECUTABLE", "PYTHONPLATLIBDIR", "PYTHONPYCACHEPREFIX"),
        *("PYTHONWARNINGS", "__PYVENV_LAUNCHER__", "VIRTUAL_ENV"),
        # Where pip puts things, and how much of them.
        *("PIP_BREAK_SYSTEM_PACKAGES", "PIP_CONSTRAINT", "PIP_DRY_RUN", "PIP_EDITABLE"),
        *("PIP_IGNORE_INSTALLED", "PIP_LOG", "PIP_NO_DEPS", "PIP_NO_DEPENDENCIES", "PIP_PREFIX"),
        *("PIP_PROGRESS_BAR", "PIP_PYTHON", "PIP_QUIET", "PIP_REPORT", "PIP_REQUIREMENT"),
        *("PIP_REQUIRE_VIRTUALENV", "PIP_ROOT", "PIP_TARGET", "PIP_UPGRADE", "PIP_VERBOSE"),
    }
)
"""What a host, or its user for the host's sake, sets and must not reach the engine.

Where packages come from (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_CERT, proxies, HF_ENDPOINT …) is the
user's to say and is passed on."""


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """A copy of the environment variables without the host's, for pip and for workers."""
    source = os.environ if environ is None else environ
    kept = {key: value for key, value in source.items() if key.upper() not in HOST_VARIABLES}
    # The user's own packages (~/.local) stay out, and pip's configuration cannot ask for them.
    kept.update(PYTHONUTF8="1", PYTHONNOUSERSITE="1", PIP_USER="0")
    return kept


class _Stop:
    """Whether the user asked to stop, as the signal's handler saw it."""

    asked = False
    held = False
    """While a child is being started: a stop then would lose the child's number."""


STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Ctrl+C, ``kill``, a closed terminal, Ctrl+Break: those of them that the system has."""


@contextmanager
def heard(act: Callable[[int, int], None], signals: Sequence[str] = STOPS) -> Iterator[None]:
    """Inside, signals to end call ``act`` with their number, and their count: 1 for the first.

    Those that are ignored stay so: under nohup a closed terminal ends nothing, nor does Ctrl+C a
    job in the background.
    """
    count = 0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal count
        count += 1
        act(number, count)

    numbers = [getattr(signal, name) for name in signals if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def stoppable() -> Iterator[None]:
    """Turns the first signal to stop into KeyboardInterrupt; what it interrupts can clean up.

    Later ones are ignored, so that the cleaning is not interrupted as well.
    """
    _Stop.asked = _Stop.held = False

    def stop(_: int, count: int) -> None:
        _Stop.asked = True
        if count == 1 and not _Stop.held:
            raise KeyboardInterrupt

    with heard(stop):
        yield
        raise_if_stopped()


def raise_if_stopped() -> None:
    """Raises KeyboardInterrupt where a stop was asked for, though nothing was interrupted."""
    if _Stop.asked:
        raise KeyboardInterrupt


@contextmanager
def started(
    command: Sequence[str], variables: Mapping[str, str | None] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Starts a program in a clean environment, and waits for its end after the block.

    ``variables`` are added to that environment, or taken from it where they are None.

    On POSIX it gets a session of its own: Ctrl+C reaches this process alone, which ends the
    program. On Windows the console tells both, and a wait for output ends with the program.
    Either way its exit code says nothing where a stop was asked for.

    The lock's handle is inherited (transaction.py), therefore close_fds is off: where the installer
    is killed, nobody builds in the same folder before this child has ended.

    Raises:
        KeyboardInterrupt: a stop was asked for; the program has ended.
    """
    child: subprocess.Popen[str] | None = None
    environ: dict[str, str | None] = {**clean_environment(), **(variables or {})}
    try:
        _Stop.held = True
        child = subprocess.Popen(
            command,
            env={key: value for key, value in environ.items() if value is not None},
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            close_fds=os.name == "nt",
            start_new_session=os.name != "nt",
            **options,
        )
        _Stop.held = False
        raise_if_stopped()
        yield child
        child.wait()
        raise_if_stopped()
    except BaseException:
        if child is not None:
            _end(child)
        raise
    finally:
        _Stop.held = False
        if child is not None and child.stdout:
            child.stdout.close()


def _end(child: subprocess.Popen[str]) -> None:
    """Ends a program with its own children: first so that it can remove its temporary files."""
    if os.name == "nt":
        child.kill()
    else:
        for number in (signal.SIGINT, signal.SIGKILL):
            with suppress(ProcessLookupError, PermissionError):  # all of them have ended
                os.killpg(child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=3)
                break
    child.wait()


def run_in_front(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> int:
    """Runs a program as if it were this one, and returns its exit code.

    It may have work to save when it is stopped, and it says itself how that went: Ctrl+C reaches
    it from the terminal, SIGTERM is passed on, and both are waited out.

    Raises:
        KeyboardInterrupt: a stop was asked for; the program has ended.
    """
    child: subprocess.Popen[bytes] | None = None
    stops: list[int] = []

    def note(number: int, _: int) -> None:
        stops.append(number)
        if child is not None and number == signal.SIGTERM:
            child.terminate()

    with heard(note, ("SIGINT", "SIGTERM")):
        child = subprocess.Popen(command, cwd=folder, env=environ)
        if signal.SIGTERM in stops:  # between its start and now
            child.terminate()
        child.wait()
    if stops:
        raise KeyboardInterrupt
    return child.returncode


def run(
    command: Sequence[str], log: IO[str], variables: Mapping[str, str | None] | None = None
) -> int:
    """Runs a program as :func:`started` has it, its output going into ``log``; the exit code."""
    with started(command, variables, stdout=log, stderr=log) as child:
        pass
    return child.returncode


def run_logged(command: Sequence[str], log: IO[str], step: str) -> None:
    """Runs a program in a clean environment, its output going into ``log``.

    Raises:
        DreamBoothError: it failed.
    """
    log.write(f"\n$ {' '.join(command)}\n")
    log.flush()
    if code := run(command, log):
        raise DreamBoothError(
            f"{step} could not be made (exit code {code})",
            where=command[0],
            do="The log says why; another Python from 3.10 to 3.13 may work",
        )
