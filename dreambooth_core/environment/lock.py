"""A lock that the operating system releases, however its holder ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dreambooth_core.errors import DreamBoothError

if sys.platform == "win32":
    import msvcrt

    def _take(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _take(handle: int) -> None:
        # A pip that outlives a killed installer keeps the handle, and so the lock, to its end.
        os.set_inheritable(handle, True)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds ``path`` locked against every other process that asks for it.

    The file stays afterwards: removing it would let two holders lock two files of one name.

    Raises:
        DreamBoothError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _take(handle)
        except OSError as error:
            raise DreamBoothError(
                "another installation of this environment is running",
                where=path,
                do="Wait until it ends, then run this again",
            ) from error
        yield
    finally:
        os.close(handle)
