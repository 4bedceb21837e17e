"""The lock that a worker holds while it lives.

The operating system lets go of it however the process ends, so a free lock says for certain
that nobody works there; a process number would not (numbers are used again).
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import time
import types
import weakref
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

PATIENCE = 1.0
"""Seconds to go on trying: a client that looks at the lock holds a shared one for an instant."""

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on a file. POSIX: ``flock``. Windows: its first byte, by ``msvcrt``.

    The file is never deleted (that would race with the next holder); after its first byte it
    holds a JSON note about the holder.
    """

    def __init__(self, path: str | os.PathLike[str], *, windows: bool = os.name == "nt") -> None:
        self.path = Path(path)
        self._handle: int | None = None
        self._system: _Posix | _Windows = _Windows() if windows else _Posix()

    def acquire(self, patience: float = PATIENCE) -> bool:
        """Takes the lock; False if another holds it.

        Raises:
            UserError: the file cannot be made.
        """
        if self._handle is not None:
            return True
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        try:
            handle = os.open(self.path, flags, 0o666)
        except OSError as error:
            raise UserError(
                f"the run's folder is not writable: {error.strerror or error}", where=self.path
            ) from error
        deadline = time.monotonic() + patience
        while not self._system.try_lock(handle):
            if time.monotonic() >= deadline:
                os.close(handle)
                return False
            time.sleep(0.02)
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
        self._system.unlock(handle)
        os.close(handle)

    def __enter__(self) -> FileLock:
        if not self.acquire():
            raise UserError("another worker is at work here", where=self.path.parent)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def is_held(self) -> bool:
        """Whether anybody, this object included, holds the lock now."""
        if self._handle is not None:
            return True
        try:
            waiting = getattr(os, "O_NONBLOCK", 0)  # a pipe is waited for, without it
            handle = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | waiting)
        except OSError:
            return False
        try:
            return self._system.is_locked(handle)
        finally:
            os.close(handle)

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

    def _forget(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _Posix:
    """``flock``: belongs to the open file, so a second opening in one process conflicts too."""

    def __init__(self) -> None:
        import fcntl

        self._fcntl: types.ModuleType = fcntl

    def try_lock(self, handle: int) -> bool:
        return self._flock(handle, self._fcntl.LOCK_EX)

    def unlock(self, handle: int) -> None:
        self._fcntl.flock(handle, self._fcntl.LOCK_UN)

    def is_locked(self, handle: int) -> bool:
        """Asks for a shared lock, so that two who look do not see each other."""
        if self._flock(handle, self._fcntl.LOCK_SH):
            self.unlock(handle)
            return False
        return True

    def _flock(self, handle: int, how: int) -> bool:
        try:
            self._fcntl.flock(handle, how | self._fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EAGAIN):
                return False
            raise UserError(
                f"this file system cannot lock files: {error.strerror}",
                do="Put the runs on a local disk.",
            ) from error
        return True


class _Windows:
    """``msvcrt.locking`` on byte 0. Such a lock is mandatory: whoever reads the byte is refused,

    which is how one looks at it without taking it.
    """

    def __init__(self, msvcrt: Any = None) -> None:
        if msvcrt is None:
            import importlib

            msvcrt = importlib.import_module("msvcrt")
        self._msvcrt = msvcrt

    def try_lock(self, handle: int) -> bool:
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            self._msvcrt.locking(handle, self._msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def unlock(self, handle: int) -> None:
        os.lseek(handle, 0, os.SEEK_SET)
        self._msvcrt.locking(handle, self._msvcrt.LK_UNLCK, 1)

    def is_locked(self, handle: int) -> bool:
        os.lseek(handle, 0, os.SEEK_SET)
        try:
            os.read(handle, 1)
        except OSError:
            return True
        return False


def _forget_in_child() -> None:
    """A forked child (a loader of images, say) must not keep its dead parent's lock alive."""
    for lock in list(_held):
        lock._forget()
    _held.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_in_child)
