"""Starts a worker that outlives whoever started it, or gives the run to one that has just ended
another and waits."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import spare
from dreambooth_core.jobs.environment import clone, engine_command, worker_environment
from dreambooth_core.jobs.folder import RunFolder
from dreambooth_core.jobs.proposal import Proposal

logger = logging.getLogger(__name__)

WORKER = "dreambooth_core.worker"
NOTED = "--noted"
"""Tells the worker that the start is already marked in ``control.jsonl``."""

PROPOSAL = "--proposal"
"""Names the settings that the run is to be resumed with."""

QUEUED = "--queued"
"""Tells the worker to wait until the runs that came before have ended."""

SPARE = "--spare"
"""Names the kind of a worker that waits for another run after its own."""

START = "--start"
"""Names the start in ``control.jsonl`` of a run that a spare worker takes up."""

CREATE_NEW_PROCESS_GROUP = 0x00000200
CREATE_NO_WINDOW = 0x08000000
CREATE_BREAKAWAY_FROM_JOB = 0x01000000


def start(
    folder: str | os.PathLike[str],
    python: str | os.PathLike[str] | Sequence[str] | None = None,
    env: Mapping[str, str] | None = None,
    *,
    queued: bool = False,
    proposal: Proposal | str | os.PathLike[str] | None = None,
) -> None:
    """Starts a worker on a run and returns at once; the run's events tell the rest.

    The worker has its own session (POSIX) or process group and hidden console (Windows): it
    lives on when the caller ends, its window is closed or Ctrl+C is pressed there. What it
    prints goes to ``logs/worker.log``.

    Args:
        folder: a run with its ``config.yaml``.
        python: the interpreter, or the command that starts it; by default the engine's own.
        env: the environment to derive the worker's from; by default this process's. What would
            bring another Python's packages is taken out.
        queued: whether it waits until the runs beside it that came before have ended.
        proposal: the settings to resume with; they are withdrawn where no worker starts.

    Raises:
        UserError: a worker is at work there already, or none could be started.
    """
    run = RunFolder(folder)
    offered = Proposal(proposal) if isinstance(proposal, (str, os.PathLike)) else proposal
    try:
        _start(run, python, env, offered, queued=queued)
    except UserError:
        if offered is not None:
            offered.withdraw()
        raise


def _start(
    run: RunFolder,
    python: str | os.PathLike[str] | Sequence[str] | None,
    env: Mapping[str, str] | None,
    proposal: Proposal | None,
    *,
    queued: bool,
) -> None:
    if not run.path.is_dir():
        raise UserError("no such run", where=run.path)
    run.make()
    if run.lock.is_held():
        raise UserError("this run has a worker already", where=run.path)
    if python is None:
        interpreter = engine_command(env)
    elif isinstance(python, (str, os.PathLike)):
        interpreter = [str(python)]
    else:
        interpreter = list(python)
    variables = worker_environment(env)
    name = run.control.mark_start(run.events.size())
    arguments = [str(run.path), NOTED, *[QUEUED] * queued]
    if proposal is not None:
        arguments += [PROPOSAL, str(proposal.path)]
    command = [*interpreter, "-m", WORKER]
    if spare.minutes(variables):
        kind = spare.kind_of(command, variables, clone() / "dreambooth_core")
        arguments += [SPARE, kind]
        if spare.hand_over(run.path.parent, kind, [*arguments, START, name]):
            logger.info("%s: the spare worker took it", run.name)
            return
    try:
        process = _detached([*command, *arguments], run.worker_log, clone(), variables)
    except OSError as error:
        run.control.mark_exited(name, -1)
        raise not_started(interpreter, error) from error
    logger.info("%s: worker %d started", run.name, process.pid)
    waiter = threading.Thread(
        target=_note_exit, args=(process, run, name), name=f"dreambooth-{run.name}", daemon=True
    )
    waiter.start()


def detachment(*, windows: bool = os.name == "nt", breakaway: bool = True) -> dict[str, Any]:
    """The arguments of ``Popen`` that cut a process loose from this one.

    A hidden console instead of none (``DETACHED_PROCESS``): without a console each of the
    worker's own children would open a window. A job object, in which some launchers put the
    host, would end the worker with the host, so it breaks away where that is allowed.
    """
    flags = CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW
    return apart(flags | (CREATE_BREAKAWAY_FROM_JOB if breakaway else 0), windows=windows)


def apart(flags: int, *, windows: bool = os.name == "nt") -> dict[str, Any]:
    """The arguments of ``Popen`` for a session of its own; on Windows ``flags`` stand for one."""
    return {"creationflags": flags} if windows else {"start_new_session": True}


def not_started(command: Sequence[str], error: OSError) -> UserError:
    """The line for a Python of the engine that does not start."""
    return UserError(
        f"the engine's Python could not be started: {error.strerror or error}",
        where=command[0],
        do="Run 'python install.py' to make its environment.",
    )


def _detached(
    arguments: Sequence[str],
    log: Path,
    directory: Path,
    env: dict[str, str],
    *,
    windows: bool = os.name == "nt",
) -> subprocess.Popen[bytes]:
    """The worker's process. ``-m`` looks into ``directory`` first: the caller's own version."""
    with log.open("ab") as output:

        def popen(**more: Any) -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                list(arguments),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                env=env,
                close_fds=True,
                **more,
            )

        try:
            return popen(**detachment(windows=windows))
        except PermissionError:
            if not windows:
                raise
            return popen(**detachment(windows=True, breakaway=False))  # the job object forbids it


def _note_exit(process: subprocess.Popen[bytes], run: RunFolder, start: str) -> None:
    """Waits for the worker, so that it leaves no zombie, and notes that it is gone."""
    code = process.wait()
    with contextlib.suppress(UserError):  # the run's folder was deleted meanwhile
        run.control.mark_exited(start, code)
