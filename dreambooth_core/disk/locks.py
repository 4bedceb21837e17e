"""Locks on files, which the operating system lets go of however their holder ends.

So a free lock says for certain that nobody is at work; a process number would not (numbers are
used again). Workers, places in the queue, the installer and whoever writes to the disk hold one.

The library filelock cannot serve: hosts and install.py import this with the standard library
alone, and it empties the file that it locks, where ours say who holds them or what is to be done.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import platform
import time
import weakref
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

PATIENCE = 1.0
"""Seconds to go on trying: a client that looks at the lock holds a shared one for an instant."""

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, getattr(errno, "EDEADLOCK", 0))
_WINDOWS = os.name == "nt"
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def take(
    handle: int, *, byte: int = 0, shared: bool = False, windows: bool = _WINDOWS
) -> bool | None:
    """Locks an open file; False if another holds it, None if this file system cannot lock.

    POSIX: ``flock``, which belongs to the open file, so that a second opening in one process
    conflicts too. Windows: one byte, which nobody else may even read then.
    """
    try:
        if windows:
            msvcrt: Any = importlib.import_module("msvcrt")
            os.lseek(handle, byte, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl: Any = importlib.import_module("fcntl")
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _BUSY else None
    return True


def _let_go(handle: int, windows: bool) -> None:
    if windows:
        msvcrt: Any = importlib.import_module("msvcrt")
        os.lseek(handle, 0, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_UNLCK, 1)
    else:
        fcntl: Any = importlib.import_module("fcntl")
        fcntl.flock(handle, fcntl.LOCK_UN)


class FileLock:
    """An exclusive lock on a file, taken at its first byte.

    The file is never deleted (that would race with the next holder); after its first byte it
    holds a JSON note about the holder.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        inherited: bool = False,
        windows: bool = _WINDOWS,
    ) -> None:
        """``inherited``: programs that the holder starts keep the lock if they outlive it."""
        self.path = Path(path)
        self._inherited, self._windows = inherited, windows
        self._handle: int | None = None

    def acquire(self, patience: float = PATIENCE) -> bool:
        """Takes the lock; False if another holds it.

        Raises:
            UserError: the file cannot be made, or not be locked.
        """
        if self._handle is not None:
            return True
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise UserError(f"not writable: {error.strerror or error}", where=self.path) from error
        deadline = time.monotonic() + patience
        while not (taken := take(handle, windows=self._windows)):
            if taken is None or time.monotonic() >= deadline:
                os.close(handle)
                if taken is None:
                    raise UserError(
                        "this file system cannot lock files",
                        where=self.path,
                        do="Use a local disk.",
                    )
                return False
            time.sleep(0.02)
        if self._inherited:
            os.set_inheritable(handle, True)
        self._handle = handle
        _held.add(self)
        self._write_note()
        return True

    def release(self) -> None:
        """Lets go; nothing happens if it is not held."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        _held.discard(self)
        _let_go(handle, self._windows)
        os.close(handle)

    def __enter__(self) -> FileLock:
        if not self.acquire():
            raise UserError("another worker is at work here", where=self.path.parent)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_held(self) -> bool:
        """Whether anybody, this object included, holds the lock now. Takes it from nobody."""
        if self._handle is not None:
            return True
        try:
            waiting = getattr(os, "O_NONBLOCK", 0)  # a pipe is waited for, without it
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | waiting)
        except OSError:
            return False
        try:
            if not self._windows:  # a shared lock, so that two who look do not see each other
                return take(handle, shared=True, windows=False) is False
            os.read(handle, 1)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def holder(self) -> dict[str, Any]:
        """The note of the latest holder: ``pid``, ``machine``, ``time``; empty if unreadable."""
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(1)  # the first byte cannot be read on Windows while it is locked
                note = json.loads(file.read().decode("utf-8"))
        except (OSError, ValueError):
            return {}
        return note if isinstance(note, dict) else {}

    def _write_note(self) -> None:
        assert self._handle is not None
        note = {"pid": os.getpid(), "machine": platform.node(), "time": round(time.time(), 3)}
        text = json.dumps(note).encode("utf-8")
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, b" " + text)
        os.ftruncate(self._handle, 1 + len(text))


def _forget_in_child() -> None:
    """A forked child (a loader of images, say) must not keep its dead parent's lock alive."""
    for lock in list(_held):
        if lock._handle is not None:
            os.close(lock._handle)
            lock._handle = None
    _held.clear()


if not _WINDOWS:
    os.register_at_fork(after_in_child=_forget_in_child)
