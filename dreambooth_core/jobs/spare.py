"""A worker that has ended its run waits a while for the next: with the libraries, and the base,
still in its memory.

At most one waits for each folder of runs, in ``<runs>/.spare``, whose lock it holds. A client
that starts a run leaves it a request there, which is taken by renaming, so that one of the two
has it for certain; where nobody takes it in time, the client takes it back and starts a process.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dreambooth_core.disk import write_text
from dreambooth_core.disk.locks import FileLock
from dreambooth_core.errors import SaveFailed, UserError

FOLDER = ".spare"
MINUTES = "DREAMBOOTH_SPARE_MINUTES"
"""The environment variable that says how long a worker waits after its run; 0: not at all."""

DEFAULT_MINUTES = 5.0
PATIENCE = 5.0
"""Seconds that a request may lie there untaken while a worker waits: a busy machine is slow."""

STALE = 60.0
"""Seconds after which a request lies there for good: its client takes it back long before."""

POLL = 0.02
LOOK = 1.0
"""Seconds between two looks at what else the machine is asked for."""


def minutes(environ: Mapping[str, str]) -> float:
    """How long a worker waits for another run.

    Raises:
        UserError: the variable does not say a number of minutes.
    """
    said = environ.get(MINUTES, "").strip()
    try:
        found = float(said) if said else DEFAULT_MINUTES
    except ValueError:
        found = -1.0
    if not 0.0 <= found <= 1440.0:
        raise UserError(
            f"{said!r} is not a number of minutes", where=MINUTES, do="Give 0 to 1440, 0 for none."
        )
    return found


def kind_of(command: Sequence[str], environ: Mapping[str, str], code: Path) -> str:
    """What two workers must have in common for one to stand in for the other: the Python, the
    variables of the environment and the engine's own code, as it lies on the disk now."""
    files = sorted(code.rglob("*.py"))
    stamps = [(file.relative_to(code).as_posix(), file.stat().st_mtime_ns) for file in files]
    facts = json.dumps([list(command), sorted(environ.items()), stamps])
    return hashlib.sha256(facts.encode("utf-8", "surrogateescape")).hexdigest()


def hand_over(
    runs: Path, kind: str, arguments: Sequence[str], *, patience: float = PATIENCE
) -> bool:
    """Gives the spare worker of a folder of runs something to do.

    Args:
        runs: the folder of runs.
        kind: what :func:`kind_of` says of the worker that is wanted.
        arguments: the worker's command line.
        patience: seconds that it may take to answer.

    Returns:
        Whether one took it; False where none waits, or one of another kind.
    """
    folder = runs / FOLDER
    lock = FileLock(folder / "lock")
    try:
        waits = lock.is_held() and (folder / "kind").read_text("utf-8") == kind
    except OSError:
        waits = False
    if not waits:
        return False
    request = folder / f"{kind}-{secrets.token_hex(8)}.request"
    try:
        write_text(request, json.dumps(list(arguments)))
    except SaveFailed:
        return False
    deadline = time.monotonic() + patience
    while request.exists() and lock.is_held() and time.monotonic() < deadline:
        time.sleep(POLL)
    try:
        request.unlink()
    except FileNotFoundError:
        return True
    except OSError:  # Windows: it is being renamed
        return not request.exists()
    return False


def wait(
    runs: Path, kind: str, seconds: float, *, wanted: Callable[[], bool] = lambda: False
) -> list[str] | None:
    """Waits for the next thing to do.

    Args:
        runs: the folder of runs.
        kind: what :func:`kind_of` said when this worker was started.
        seconds: how long.
        wanted: asked about once a second whether somebody needs this worker's memory.

    Returns:
        The command line to go on with; None: leave. Another waits already, nobody came, or the
        memory is wanted.
    """
    folder = runs / FOLDER
    lock = FileLock(folder / "lock")
    try:
        folder.mkdir(exist_ok=True)
        if not lock.acquire(patience=0.0):
            return None
        for left in [*folder.glob("*.request"), *folder.glob("*.taken")]:
            if time.time() - left.stat().st_mtime > STALE:  # its client was killed
                left.unlink(missing_ok=True)
        write_text(folder / "kind", kind)
        now = time.monotonic()
        until, look = now + seconds, now + LOOK
        while now < until:
            for request in folder.glob(f"{kind}-*.request"):
                if (taken := _taken(request)) is not None:
                    return taken
            if now >= look:
                look = now + LOOK
                if wanted() or not folder.is_dir():
                    return None
            time.sleep(POLL)
            now = time.monotonic()
    except (OSError, SaveFailed, UserError):  # a worker too many is worth no word
        pass
    finally:
        lock.release()
    return None


def _taken(request: Path) -> list[str] | None:
    """The request, if it could be taken; nobody else has it then."""
    mine = request.with_suffix(".taken")
    try:
        os.replace(request, mine)
        found = json.loads(mine.read_text(encoding="utf-8"))
        mine.unlink()
    except (OSError, ValueError):
        return None
    return [str(argument) for argument in found] if isinstance(found, list) else None
