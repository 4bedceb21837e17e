"""The front end's side of a run: watch it, ask it, end it."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from dreambooth_core.errors import UserError
from dreambooth_core.jobs.events import ENDINGS, Event
from dreambooth_core.jobs.folder import RunFolder
from dreambooth_core.jobs.status import status


def attach(
    folder: str | os.PathLike[str],
    *,
    offset: int = 0,
    poll: float = 0.25,
    timeout: float | None = None,
) -> Iterator[Event]:
    """The events of a run from byte ``offset`` on, as they come, until the run ends.

    A run whose worker died yields a last event ``{"kind": "lost", "message": …}`` that is not in
    the file. ``timeout`` ends the iteration after so many seconds without an event.

    Raises:
        UserError: there is no such run.
    """
    run = RunFolder(folder)
    quiet_since = time.monotonic()
    last_kind = ""
    while True:
        # The state before the events: an ending that comes between the two is then seen as one.
        state = status(run)
        events, offset = run.events.read(offset)
        for event in events:
            last_kind = event["kind"]
            yield event
        if state.state == "lost" and not events:
            yield {"time": time.time(), "kind": "lost", "message": state.message}
            return
        if state.state in ("finished", "stopped", "failed") and not events:
            return
        if last_kind in ENDINGS and not run.lock.is_held() and status(run).state != "waiting":
            return
        if events:
            quiet_since = time.monotonic()
        elif timeout is not None and time.monotonic() - quiet_since > timeout:
            return
        time.sleep(poll)


def command(folder: str | os.PathLike[str], verb: str) -> None:
    """Asks a run's worker for ``verb``, one of :data:`~dreambooth_core.jobs.control.VERBS`.

    Raises:
        UserError: no such verb or run, or no worker that could hear it.
    """
    run = RunFolder(folder)
    state = status(run).state
    if state not in ("running", "waiting"):
        raise UserError(f"cannot {verb.replace('_', ' ')}: the run is {state}", where=run.name)
    run.control.request(verb)


def terminate(
    folder: str | os.PathLike[str],
    *,
    patience: float = 30.0,
    grace: float = 5.0,
    kill: Callable[[int, bool], None] | None = None,
) -> str:
    """Ends a run's worker: asks it to stop, then insists.

    Args:
        folder: the run.
        patience: seconds to wait for the worker to stop by itself.
        grace: seconds between the signal that can be handled and the one that cannot.
        kill: for tests; called with the process number and whether to be merciless.

    Returns:
        ``"not running"``, ``"stopped"`` (it did as asked), ``"terminated"`` or ``"killed"``.

    Raises:
        UserError: the worker is on another machine, or does not die.
    """
    run = RunFolder(folder)
    if not run.lock.is_held():
        return "not running"
    run.control.request("stop")
    if _wait_until_free(run, patience):
        return "stopped"
    holder = run.lock.holder()
    pid = holder.get("pid")
    if not isinstance(pid, int) or pid <= 0 or pid == os.getpid():
        raise UserError("the worker's process number is not known", where=run.path)
    if holder.get("machine") not in (None, platform.node()):
        raise UserError(f"the worker is on {holder['machine']}: end it there", where=run.path)
    end = kill or end_process
    end(pid, False)
    if _wait_until_free(run, grace):
        return "terminated"
    # The lock is still held, so the number is still the worker's and not somebody else's.
    end(pid, True)
    if _wait_until_free(run, grace):
        return "killed"
    raise UserError(f"process {pid} does not end", where=run.path, do="End it by hand.")


def _wait_until_free(run: RunFolder, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while run.lock.is_held():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def end_process(pid: int, merciless: bool, *, windows: bool = os.name == "nt") -> None:
    """Ends a process with its children. Only for one that holds a lock: its number is then still
    its own."""
    if windows:
        # Windows has no signal that a hidden process could handle; /T takes the children along.
        subprocess.run(
            ["taskkill", "/PID", str(pid), "/T", "/F"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        return
    if sys.platform != "win32":
        number = signal.SIGKILL if merciless else signal.SIGTERM
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(pid) == pid:  # a detached worker leads its own group
                os.killpg(pid, number)
            else:
                os.kill(pid, number)
