"""A disk that fails at the n-th operation, as seen by the Python code of one process.

Everything that changes what is on the disk is counted: files made, written and flushed, folders
made, names changed and removed. Python's own functions are replaced, so it works on Linux without
rights, and what writes through C alone is not seen: safetensors' and torch's own writers, which
the engine does not use for what it keeps.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAULTS = ("ENOSPC", "EIO", "kill", "full")
"""``full``: from the n-th operation on, for :data:`LASTS` attempts, nothing can be made or written;
names can be changed."""
LASTS = 8
KILLED = 77
"""The exit code of a process that was killed."""
GROWING = ("create", "write", "mkdir")


@dataclass
class FailingDisk:
    """Counts the operations below ``root``; the one with number ``at`` fails."""

    root: Path
    at: int = 0
    """From 1; 0 for none."""
    fault: str = "EIO"
    seen: list[str] = field(default_factory=list)
    """The kind of each operation, in order."""
    failed: int = 0
    branch: Callable[[FailingDisk, str, int], bool] | None = None
    """Asked at each operation, with its kind and number; may fork, and set the fault there."""
    paused: bool = False
    """Nothing is counted."""

    def install(self) -> None:
        """Takes the place of this process's functions; for good: use it in a fork."""
        self.root = Path(os.path.realpath(self.root))
        self._true = {name: getattr(os, name) for name in _PATCHED}
        self._true_open = io.open
        builtins.open = io.open = self._opened  # type: ignore[assignment]
        for name in _PATCHED:
            setattr(os, name, getattr(self, f"_{name}"))

    def hit(self, kind: str, path: Any, dir_fd: int | None = None) -> bool:
        """Counts an operation; whether it is to fail. Kills unless something is to be written."""
        if not self._below(path, dir_fd):
            return False
        self.seen.append(kind)
        number = len(self.seen)
        if self.branch is not None:
            self.branch(self, kind, number)
        if self.fault == "full":
            fails = 0 < self.at <= number and self.failed < LASTS and kind in GROWING
        else:
            fails = number == self.at
        self.failed += fails
        if fails and self.fault == "kill" and kind != "write":
            os._exit(KILLED)
        return fails

    def fail(self, kind: str, path: Any) -> None:
        """Raises what the system would."""
        number = errno.EIO if self.fault == "EIO" else errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path))

    def _do(self, kind: str, name: str, path: Any, *args: Any, **more: Any) -> Any:
        fds = [value for key, value in more.items() if key in ("dir_fd", "src_dir_fd")]
        if self.hit(kind, path, next(iter(fds), None)):
            self.fail(kind, path)
        return self._true[name](path, *args, **more)

    def _below(self, path: Any, dir_fd: int | None = None) -> bool:
        if self.paused:
            return False
        if isinstance(path, int):
            place = self._true["readlink"](f"/proc/self/fd/{path}")
        else:
            place = os.fsdecode(path)
            if dir_fd is not None:
                place = os.path.join(self._true["readlink"](f"/proc/self/fd/{dir_fd}"), place)
        return Path(os.path.abspath(place)).is_relative_to(self.root)

    def _own(self, path: Any, dir_fd: int | None = None) -> None:
        """Before a file is written to that another folder shares (see disk_forks)."""
        if not isinstance(path, int) and dir_fd is None and self._below(path):
            self.paused = True
            try:
                if os.path.isfile(path):
                    own(path)
            finally:
                self.paused = False

    # -- what is replaced --------------------------------------------------------------------

    def _open(self, path: Any, flags: int, *args: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            self._own(path, more.get("dir_fd"))
        if flags & (os.O_CREAT | os.O_TRUNC):
            return int(self._do("create", "open", path, flags, *args, **more))
        return int(self._true["open"](path, flags, *args, **more))

    def _write(self, handle: int, data: Any) -> int:
        return self._written(handle, data, lambda some: int(self._true["write"](handle, some)))

    def _written(self, handle: int, data: Any, write: Callable[[Any], int | None]) -> int:
        if self.hit("write", handle):
            view = memoryview(data).cast("B")
            if self.fault != "EIO" and len(view) > 1:
                write(view[: len(view) // 2])
            if self.fault == "kill":
                os._exit(KILLED)
            self.fail("write", handle)
        return write(data) or 0

    def _fsync(self, handle: int) -> None:
        self._do("fsync", "fsync", handle)

    def _ftruncate(self, handle: int, length: int) -> None:
        self._do("truncate", "ftruncate", handle, length)

    def _mkdir(self, path: Any, *args: Any, **more: Any) -> None:
        self._do("mkdir", "mkdir", path, *args, **more)

    def _rename(self, source: Any, target: Any, **more: Any) -> None:
        self._do("rename", "rename", source, target, **more)

    def _replace(self, source: Any, target: Any, **more: Any) -> None:
        self._do("rename", "replace", source, target, **more)

    def _link(self, source: Any, target: Any, **more: Any) -> None:
        self._do("link", "link", source, target, **more)

    def _unlink(self, path: Any, **more: Any) -> None:
        self._do("unlink", "unlink", path, **more)

    def _remove(self, path: Any, **more: Any) -> None:
        self._do("unlink", "remove", path, **more)

    def _rmdir(self, path: Any, **more: Any) -> None:
        self._do("rmdir", "rmdir", path, **more)

    def _readlink(self, *args: Any, **more: Any) -> Any:
        return self._true["readlink"](*args, **more)

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        """``open``, with a Python class below it where it writes."""
        if not set(mode) & set("wax+") or not self._below(file):
            return self._true_open(
                file, mode, buffering, encoding, errors, newline, closefd, opener
            )
        if not isinstance(file, int) and mode[0] != "r" and self.hit("create", file):
            self.fail("create", file)
        self._own(file)
        raw = _Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
        raw.disk = self
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, line_buffering=buffering == 1)


_PATCHED = (
    "open",
    "write",
    "fsync",
    "ftruncate",
    "mkdir",
    "rename",
    "replace",
    "link",
    "unlink",
    "remove",
    "rmdir",
    "readlink",
)


class _Raw(io.FileIO):
    disk: FailingDisk

    def write(self, data: Any) -> int:
        return self.disk._written(self.fileno(), data, super().write)


def own(path: Any) -> None:
    """Gives a file that is shared with another folder contents of its own."""
    facts = os.stat(path)
    if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
        new = Path(f"{os.fsdecode(path)}.own")
        shutil.copy2(path, new)
        os.replace(new, path)
