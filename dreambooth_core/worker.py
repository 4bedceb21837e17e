"""``python -m dreambooth_core.worker RUN_FOLDER``: the process in which a run happens.

It holds the run's lock while it lives, turns signals into requests and every ending, good or
bad, into an event and an exit code: 0 done, 1 failed, 2 bad input, 130 stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Protocol

from dreambooth_core.deferral import defer, importing
from dreambooth_core.errors import DreamBoothError, SaveFailed, Stopped, TrainingFailed, UserError
from dreambooth_core.jobs.events import ENDINGS, Event
from dreambooth_core.jobs.folder import RunFolder
from dreambooth_core.jobs.launch import NOTED, QUEUED
from dreambooth_core.jobs.queue import STAGE, Turn

logger = logging.getLogger("dreambooth_core.worker")  # also as __main__

OURS = "dreambooth_core"

OnEvent = Callable[[Event], None]


class Runner(Protocol):
    """What does the work: :func:`dreambooth_core.trainer.run.run`."""

    def __call__(self, folder: RunFolder, *, on_event: OnEvent | None = None) -> None: ...


def supervise(
    folder: RunFolder,
    *,
    runner: Runner | None = None,
    on_event: OnEvent | None = None,
    noted: bool = False,
    queued: bool = False,
) -> int:
    """Does a run in this process, from taking its lock to its last event.

    Args:
        folder: the run, with its ``config.yaml``.
        runner: what does the work; by default the trainer.
        on_event: called with each event, the runner's and the ending, after it was written.
        noted: whether the start is already marked in ``control.jsonl``.
        queued: whether to wait until the runs beside it that came before have ended; nothing
            heavy is imported until then.

    Returns:
        The exit code; whatever went wrong is in the ``error`` event.

    Raises:
        UserError: another worker is at work there, or the folder is not writable. Then nothing
            was written.

    Launched as one of several processes (``RANK`` above 0), this one only follows.
    """
    if not folder.path.is_dir():
        raise UserError("no such run", where=folder.path, do="'dreambooth runs' lists them.")
    if int(os.environ.get("RANK") or 0) > 0:
        return _follow(folder, runner)
    folder.make()
    lock = folder.lock
    if not lock.acquire():
        pid = lock.holder().get("pid", "unknown")
        raise UserError(f"this run has a worker already (process {pid})", where=folder.path)
    try:
        since = folder.events.size()
        if not noted:
            folder.control.mark_start(since)
        with _logging_to(folder), _signals_to(folder):
            return _ending(folder, _queued(runner) if queued else runner, on_event, since)
    finally:
        lock.release()


def _follow(folder: RunFolder, runner: Runner | None) -> int:
    """Does the part of one process of several; the first (rank 0) locks, speaks and writes."""
    try:
        (runner or _trainer())(folder)
    except (Stopped, KeyboardInterrupt):
        return Stopped.exit_code
    except (Exception, SystemExit) as error:
        logger.exception("process %s failed", os.environ.get("RANK"))
        return name_failure(error, folder).exit_code
    return 0


def _ending(folder: RunFolder, runner: Runner | None, on_event: OnEvent | None, since: int) -> int:
    try:
        (runner or _trainer())(folder, on_event=on_event)
        ending: dict[str, Any] = {"kind": "finished", "outcome": "done"}
        code = 0
    except (Stopped, KeyboardInterrupt) as stop:
        message = stop.line if isinstance(stop, Stopped) else "stopped"
        ending = {"kind": "finished", "outcome": "stopped", "message": message}
        code = Stopped.exit_code
    except (Exception, SystemExit) as error:
        logger.exception("the run failed")
        named = name_failure(error, folder)
        ending = {
            "kind": "error",
            "message": named.line,
            **named.as_dict(),
            "type": type(error).__name__,
            "details": folder.relative(folder.engine_log),
        }
        del ending["line"]
        code = named.exit_code
    events, _ = folder.events.read(since)
    if not (events and events[-1]["kind"] == ending["kind"] and ending["kind"] in ENDINGS):
        _tell(folder, ending, on_event)
    return code


def _queued(runner: Runner | None) -> Runner:
    """The same runner, when its turn has come."""

    def run(folder: RunFolder, *, on_event: OnEvent | None = None) -> None:
        turn, control = Turn(folder.path.parent), folder.control
        told: list[int] = []

        def tell(ahead: int) -> None:
            if any(verb.startswith("stop") for verb in control.poll()):
                raise Stopped("stopped before its turn came")
            if told != [ahead]:
                told[:] = [ahead]
                _tell(folder, {"kind": "progress", "stage": STAGE, "steps": ahead}, on_event)

        turn.take()
        try:
            turn.wait(tell)
            if told:
                _tell(folder, {"kind": "progress", "stage": "starting"}, on_event)
            (runner or _trainer())(folder, on_event=on_event)
        finally:
            turn.leave()

    return run


def _trainer() -> Runner:
    with importing():  # late: torch takes seconds, and can be broken
        from dreambooth_core.trainer.run import run

    runner: Runner = run
    return runner


def _tell(folder: RunFolder, ending: dict[str, Any], on_event: OnEvent | None) -> None:
    try:
        event = folder.events.write(**ending)
    except SaveFailed:
        logger.exception("the ending could not be written")
        event = ending
    if on_event is not None:
        on_event(event)


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


@contextlib.contextmanager
def _logging_to(folder: RunFolder) -> Iterator[None]:
    """Sends messages, ours from INFO on and the libraries' warnings, to ``logs/engine.log``."""
    handler = logging.FileHandler(folder.engine_log, encoding="utf-8", delay=True)
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
def _signals_to(folder: RunFolder) -> Iterator[None]:
    """Turns the first signal to end into the request ``stop``, the second into an interrupt.

    Only the main thread can; elsewhere signals stay as they were.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def ask(number: int, _: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        try:
            folder.control.request("stop")
        except UserError as error:
            raise KeyboardInterrupt from error

    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def main(argv: Sequence[str] | None = None, *, runner: Runner | None = None) -> int:
    """The worker's command line."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth_core.worker")
    parser.add_argument("folder", help="the run's folder")
    parser.add_argument(NOTED, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(QUEUED, action="store_true", help="wait for the runs that came before")
    args = parser.parse_args(argv)
    if argv is None:
        defer()  # this process is ours alone
    try:
        folder = RunFolder(args.folder)
        return supervise(folder, runner=runner, noted=args.noted, queued=args.queued)
    except DreamBoothError as error:
        sys.stderr.write(f"worker: {error.line}\n")
        return error.exit_code


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
