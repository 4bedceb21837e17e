"""What surrounds the work of a run's process: its log, the signals that it gets, its failures."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from dreambooth_core.environment.processes import heard
from dreambooth_core.errors import DreamBoothError, SaveFailed, Stopped, TrainingFailed, UserError
from dreambooth_core.jobs.control import Control
from dreambooth_core.jobs.folder import RunFolder

OURS = "dreambooth_core"
WATCH = 1.0
"""Seconds between two looks at whether the launcher is there."""


def name_failure(error: BaseException, folder: RunFolder) -> DreamBoothError:
    """The line that a person gets to read for any exception."""
    if isinstance(error, DreamBoothError):
        return error
    text = " ".join(str(error).split())
    kind = type(error).__name__
    lowered = text.lower()
    if kind == "OutOfMemoryError" or "cuda out of memory" in lowered or "backend out of" in lowered:
        return TrainingFailed(
            f"the device has not enough free memory: {text[:160]}",
            do="Turn on gradient checkpointing, lower resolution, batch size or rank, "
            "or close what else uses the device.",
        )
    if kind == "DistBackendError" or (kind == "RuntimeError" and "gloo" in lowered):
        return TrainingFailed(
            f"another process of this run has ended or cannot be reached: {text[:160]}",
            do="Its own messages say why. Resume: what was saved stays.",
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in lowered:
        return TrainingFailed(
            "this computer has not enough free memory",
            do="Close other programs, or lower resolution, batch size or the caches.",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1)):
        return SaveFailed(
            "the disk is full; what was saved before is untouched",
            where=error.filename or folder.path,
            do="Make room and resume.",
        )
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith(OURS):
        return UserError(
            f"the engine's environment lacks {error.name}", do="Run 'python install.py'."
        )
    if isinstance(error, SystemExit):
        return TrainingFailed(f"a library ended the run with code {error.code}")
    return TrainingFailed(
        f"unexpected {kind}: {text[:300]}" if text else f"unexpected {kind}",
        do=f"The traceback is in {folder.engine_log}.",
    )


class _Log(logging.FileHandler):
    """A log that is worth no run: where it cannot be written (a full disk, a folder that was
    deleted) its messages are dropped."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what is still to be written
            super().close()


@contextlib.contextmanager
def logging_to(folder: RunFolder) -> Iterator[None]:
    """Sends messages, ours from INFO on and the libraries' warnings, to ``logs/engine.log``."""
    handler = _Log(folder.engine_log, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root, ours = logging.getLogger(), logging.getLogger("dreambooth_core")
    level = ours.level
    root.addHandler(handler)
    if ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


@contextlib.contextmanager
def signals_to(folder: RunFolder) -> Iterator[None]:
    """Turns the first signal to end into the request ``stop``, the second into an interrupt, and
    a third ends the process where it stands.

    Only the main thread can; elsewhere signals stay as they were. Each of several processes asks:
    a launcher or a terminal may tell all of them or one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    control = folder.control

    def ask(_: int, count: int) -> None:
        if count == 1:
            control.hear("stop")
        elif count == 2:
            raise KeyboardInterrupt
        else:
            os._exit(Stopped.exit_code)

    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        threading.Thread(target=_watch_launcher, args=(control,), daemon=True).start()
    with heard(ask):
        yield


def _watch_launcher(control: Control) -> None:
    """Asks to stop when the launcher of several processes is gone: killed, it takes none along."""
    launcher = os.getppid()
    while os.getppid() == launcher:
        time.sleep(WATCH)
    control.hear("stop")


def print_to(path: Path) -> None:
    """What this process and its libraries print goes to the end of a file from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError), path.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
