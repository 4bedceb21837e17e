"""``python -m dreambooth_core.worker RUN_FOLDER``: the process in which a run happens.

It holds the run's lock while it lives, turns signals into requests and every ending, good or
bad, into an event and an exit code: 0 done, 1 failed, 2 bad input, 130 stopped. The first signal
asks to save and stop, a second one ends at once. After a run it may wait for another one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from dreambooth_core.deferral import defer, importing
from dreambooth_core.errors import (
    DreamBoothError,
    RunGone,
    SaveFailed,
    Stopped,
    UserError,
)
from dreambooth_core.jobs import spare
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.jobs.events import ENDINGS, Event
from dreambooth_core.jobs.folder import RunFolder
from dreambooth_core.jobs.launch import NOTED, PROPOSAL, QUEUED, SPARE, START
from dreambooth_core.jobs.proposal import Proposal
from dreambooth_core.jobs.queue import STAGE, Turn
from dreambooth_core.process import logging_to, name_failure, print_to, signals_to

logger = logging.getLogger("dreambooth_core.worker")  # also as __main__

OnEvent = Callable[[Event], None]


class Runner(Protocol):
    """What does the work: :func:`dreambooth_core.trainer.run.run`, which also takes a proposal."""

    def __call__(self, folder: RunFolder, *, on_event: OnEvent | None = None) -> None: ...


def supervise(
    folder: RunFolder,
    *,
    runner: Runner | None = None,
    on_event: OnEvent | None = None,
    noted: bool = False,
    queued: bool = False,
    proposal: Proposal | None = None,
) -> int:
    """Does a run in this process, from taking its lock to its last event.

    Args:
        folder: the run, with its ``config.yaml``.
        runner: what does the work; by default the trainer.
        on_event: called with each event, the runner's and the ending, after it was written.
        noted: whether the start is already marked in ``control.jsonl``.
        queued: whether to wait until the runs beside it that came before have ended; nothing
            heavy is imported until then.
        proposal: the settings to resume with. They replace the run's own when the runner accepts
            them, and are withdrawn where it comes to nothing.

    Returns:
        The exit code; whatever went wrong is in the ``error`` event.

    Raises:
        UserError: another worker is at work there, or the folder is not writable. Then nothing
            was written.

    Launched as one of several processes (``RANK`` above 0), this one only follows.
    """
    if not folder.path.is_dir():
        raise UserError("no such run", where=folder.path, do="'dreambooth runs' lists them.")
    work: Callable[..., None] = runner or _trainer
    if proposal is not None:
        proposal.check(folder)
        work = functools.partial(work, proposal=proposal)
    if int(os.environ.get("RANK") or 0) > 0:
        with signals_to(folder):
            return _follow(folder, work)
    try:
        return _supervise(folder, work, on_event, noted=noted, queued=queued)
    finally:
        if proposal is not None:
            proposal.withdraw()


def _supervise(
    folder: RunFolder, runner: Runner, on_event: OnEvent | None, *, noted: bool, queued: bool
) -> int:
    folder.make()
    lock = folder.lock
    if not lock.acquire():
        pid = lock.holder().get("pid", "unknown")
        raise UserError(f"this run has a worker already (process {pid})", where=folder.path)
    try:
        since = folder.events.size()
        if not noted:
            folder.control.mark_start(since)
        with logging_to(folder), signals_to(folder):
            return _ending(folder, _queued(runner) if queued else runner, on_event, since)
    finally:
        lock.release()


def _follow(folder: RunFolder, runner: Runner) -> int:
    """Does the part of one process of several; the first (rank 0) locks, speaks and writes."""
    try:
        runner(folder)
    except (Stopped, KeyboardInterrupt):
        return Stopped.exit_code
    except (Exception, SystemExit) as error:
        logger.exception("process %s failed", os.environ.get("RANK"))
        return name_failure(error, folder).exit_code
    return 0


def _ending(folder: RunFolder, runner: Runner, on_event: OnEvent | None, since: int) -> int:
    home = folder.identity()
    try:
        runner(folder, on_event=on_event)
        ending: dict[str, Any] = {"kind": "finished", "outcome": "done"}
        code = 0
    except (Stopped, KeyboardInterrupt) as stop:
        message = stop.line if isinstance(stop, Stopped) else _at_once(folder)
        ending = {"kind": "finished", "outcome": "stopped", "message": message}
        code = Stopped.exit_code
    except (Exception, SystemExit) as error:
        named = name_failure(error, folder)
        if folder.identity() == home:
            logger.exception("the run failed")
        else:
            named = _gone(folder, error)
        ending = {
            "kind": "error",
            "message": named.line,
            **named.as_dict(),
            "type": type(error).__name__,
            "details": folder.relative(folder.engine_log),
        }
        del ending["line"]
        code = named.exit_code
    if folder.identity() != home:  # nothing of it is made again
        sys.stderr.write(f"worker: {ending.get('message') or _gone(folder).line}\n")
        if on_event is not None:
            on_event(ending)
        return code or RunGone.exit_code
    events, _ = folder.events.read(since)
    if not any(event["kind"] == "started" for event in events):
        ending["refused"] = True
    if not (events and events[-1]["kind"] == ending["kind"] and ending["kind"] in ENDINGS):
        _tell(folder, ending, on_event)
    return code


def _gone(folder: RunFolder, error: BaseException | None = None) -> DreamBoothError:
    """The line for a run whose folder was deleted while it was at work."""
    if isinstance(error, RunGone):
        return error
    return RunGone("the run's folder was deleted while it was at work; it stops", where=folder.path)


def _at_once(folder: RunFolder) -> str:
    """What is left of a run that was ended by a second signal."""
    last = max(saved_steps(folder.checkpoints), default=None)
    if last is None:
        return "ended at once; nothing was saved, so the run starts anew"
    return f"ended at once; the run resumes from step {last}"


def _queued(runner: Runner) -> Runner:
    """The same runner, when its turn has come."""

    def run(folder: RunFolder, *, on_event: OnEvent | None = None) -> None:
        turn, control = Turn(folder.path.parent), folder.control
        lasting = getattr(runner, "func", runner)  # of a partial
        told: list[int] = []

        def tell(ahead: int) -> None:
            if any(verb.startswith("stop") for verb in control.poll()):
                raise Stopped("stopped before its turn came")
            if not told and isinstance(lasting, _Lasting):
                lasting.forget()  # the run that is at work may need the memory
            if told != [ahead]:
                told[:] = [ahead]
                _tell(folder, {"kind": "progress", "stage": STAGE, "steps": ahead}, on_event)

        turn.take()
        try:
            turn.wait(tell)
            if told:
                _tell(folder, {"kind": "progress", "stage": "starting"}, on_event)
            runner(folder, on_event=on_event)
        finally:
            turn.leave()

    return run


def _trainer(folder: RunFolder, **arguments: Any) -> None:
    """The trainer, imported when it is called: torch takes seconds, and can be broken."""
    with importing():
        from dreambooth_core.trainer.run import run

    run(folder, **arguments)


class _Lasting:
    """The trainer of a process that goes on, which keeps in memory what serves the next run."""

    def __init__(self) -> None:
        self._kept: Any = None

    def __call__(self, folder: RunFolder, **arguments: Any) -> None:
        with importing():
            from dreambooth_core.trainer.kept import Kept

        self._kept = self._kept or Kept()
        _trainer(folder, kept=self._kept, **arguments)

    def forget(self) -> None:
        """Lets go of what is kept."""
        self._kept = None
        gc.collect()


def _tell(folder: RunFolder, ending: dict[str, Any], on_event: OnEvent | None) -> None:
    try:
        event = folder.events.write(**ending)
    except SaveFailed:
        logger.exception("the ending could not be written")
        event = ending
    if on_event is not None:
        on_event(event)


def main(argv: Sequence[str] | None = None, *, runner: Runner | None = None) -> int:
    """The worker's command line. With ``--spare`` it goes on with other runs, which clients give
    it by :mod:`dreambooth_core.jobs.spare`, until none comes any more."""
    parser = argparse.ArgumentParser(prog="python -m dreambooth_core.worker")
    parser.add_argument("folder", help="the run's folder")
    parser.add_argument(NOTED, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(QUEUED, action="store_true", help="wait for the runs that came before")
    parser.add_argument(PROPOSAL, metavar="FOLDER", help="the settings to resume with")
    parser.add_argument(SPARE, metavar="KIND", help=argparse.SUPPRESS)
    parser.add_argument(START, metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if argv is None:
        defer()  # this process is ours alone
    if args.spare:
        runner = runner or _Lasting()
    code = _work(args, runner)
    while args.spare and code in (0, Stopped.exit_code):
        given = _spare(RunFolder(args.folder).path.parent, args.spare)
        if given is None:
            break
        args = parser.parse_args(given)
        folder = RunFolder(args.folder)
        print_to(folder.worker_log)
        code = _work(args, runner)
        if args.start:
            with contextlib.suppress(UserError):  # the folder was deleted meanwhile
                folder.control.mark_exited(args.start, code)
    return code


def _work(args: argparse.Namespace, runner: Runner | None) -> int:
    """One run; the exit code."""
    try:
        folder = RunFolder(args.folder)
        proposal = Proposal(args.proposal) if args.proposal else None
        return supervise(
            folder, runner=runner, noted=args.noted, queued=args.queued, proposal=proposal
        )
    except DreamBoothError as error:
        sys.stderr.write(f"worker: {error.line}\n")
        return error.exit_code


def _spare(runs: Path, kind: str) -> list[str] | None:
    """Waits for another run below ``runs``; its command line, or None to leave."""
    print_to(Path(os.devnull))  # the log of the last run belongs to its folder, which may go
    from dreambooth_core.memory.wanted import MemoryWanted

    with contextlib.suppress(KeyboardInterrupt):
        return spare.wait(runs, kind, spare.minutes(os.environ) * 60, wanted=MemoryWanted())
    return None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)
