"""The environment is replaced whole or not at all, whatever interrupts it.

A virtual environment cannot be moved, so the new one is made in its final place while the old
one waits under another name. Success throws the old one away; failure puts it back; and where
neither was possible (a power cut), the next start finds both and knows by the marker which is
whole.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreambooth_core.disk import discard
from dreambooth_core.disk.locks import FileLock
from dreambooth_core.environment.layout import Layout
from dreambooth_core.errors import DreamBoothError, UserError


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds ``path`` locked against every other installation of the same environment.

    A pip that outlives a killed installer keeps the lock to its end.

    Raises:
        DreamBoothError: another installation holds it, or it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, inherited=True)
    try:
        taken = lock.acquire()
    except UserError as error:
        do = "Make it writable, or set DREAMBOOTH_ENV to a folder of yours"
        raise DreamBoothError(error.what, where=path, do=do) from error
    if not taken:
        raise DreamBoothError(
            "another installation of this environment is running",
            where=path,
            do="Wait until it ends, then run this again",
        )
    with lock:
        yield


@contextmanager
def replacing(layout: Layout) -> Iterator[None]:
    """Makes room for a new environment in ``layout.home``; see the module.

    Call it with the lock held.

    Raises:
        UserError: the folder is somebody else's.
        DreamBoothError: the old environment is in use.
    """
    recover(layout)
    _refuse_what_is_not_ours(layout)
    if layout.home.exists():
        _rename(layout.home, layout.previous)
    try:
        layout.home.mkdir(parents=True)
        yield
    except BaseException:
        _remove(layout.home)
        if layout.previous.exists():
            _rename(layout.previous, layout.home)
        raise
    _remove(layout.previous)


def recover(layout: Layout) -> None:
    """Ends what an interrupted installation left: one environment stays, a whole one if any."""
    known = layout.known()
    if known is not None and not known.whole:
        _remove(layout.home)
    if layout.previous.exists():
        if layout.home.exists() and known is not None and known.whole:
            _remove(layout.previous)
        else:
            _remove(layout.home)
            _rename(layout.previous, layout.home)


def _refuse_what_is_not_ours(layout: Layout) -> None:
    home = layout.home
    if not home.exists() or layout.known() is not None:
        return
    if home.is_dir() and not any(home.iterdir()):
        return
    raise UserError(
        "this is not an environment that install.py made, and it would be replaced",
        where=home,
        do="Move it away, or set DREAMBOOTH_ENV to a folder that does not exist yet",
    )


def _rename(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        raise DreamBoothError(
            f"the environment cannot be moved aside ({error.strerror or error})",
            where=source,
            do="Stop what is training, then run this again",
        ) from error


def _remove(folder: Path) -> None:
    """Deletes a folder, read-only files included.

    Raises:
        DreamBoothError: a file is in use.
    """
    if not folder.exists():
        return
    for last in (False, False, True):
        try:
            discard(folder)
            return
        except OSError as error:
            # A virus scanner, or what has just been ended, may hold a file for a moment.
            if last:
                raise DreamBoothError(
                    f"a folder cannot be removed ({error.strerror or error})",
                    where=folder,
                    do="Stop what is using it, then run this again",
                ) from error
            time.sleep(0.3)
