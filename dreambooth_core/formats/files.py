"""Files that are there whole or not at all. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dreambooth_core.errors import SaveFailed

CHUNK = 16 * 1024 * 1024
"""Bytes read or written in one go."""


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A file open for writing that takes ``path``'s place when the block ends without an error.

    The bytes go to a temporary file in the same folder, are flushed to the disk and renamed, so
    a reader sees the old file or the new one. Its mode is 0666 less the umask: other programs
    read what is written here. Missing folders are made.

    Raises:
        SaveFailed: the disk is full, the folder may not be written, … The old file is intact.
    """
    path = Path(path)
    part = path.with_name(f".{path.name[:80]}.{uuid.uuid4().hex[:12]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with os.fdopen(os.open(part, flags, 0o666), "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _rename(part, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise _save_failed(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file whole or not at all. Raises ``SaveFailed``."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text with ``\\n`` line ends, whole or not at all. Raises ``SaveFailed``."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON, keys in the order given, whole or not at all. Raises ``SaveFailed``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _rename(part: Path, path: Path) -> None:
    """Renames over ``path``, tried for a second where Windows holds the old file for a scanner."""
    for wait in (0.1, 0.3, 0.6, None):
        try:
            part.replace(path)
            return
        except PermissionError:
            if wait is None or os.name != "nt":
                raise
            time.sleep(wait)


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself last through a power cut, where the system can."""
    if os.name == "nt":
        return
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_REASONS = {
    errno.ENOSPC: ("the disk is full", "Free some space and save again"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space and save again"),
    errno.EFBIG: ("the file is too large for this file system", "Save to another disk"),
    errno.EACCES: ("this place may not be written", "Choose a folder that you may write to"),
    errno.EPERM: ("this place may not be written", "Choose a folder that you may write to"),
    errno.EROFS: ("the disk is read-only", "Choose a folder that you may write to"),
    errno.EISDIR: ("a folder of this name exists", "Choose another file name"),
    errno.ENOTDIR: ("a part of this path is a file, not a folder", "Choose another folder"),
    errno.EEXIST: ("a part of this path is a file, not a folder", "Choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter one"),
}


def _save_failed(path: Path, error: OSError) -> SaveFailed:
    what, do = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    if os.name == "nt" and isinstance(error, PermissionError):
        what = "this file may not be replaced; another program may have it open"
        do = "Close that program, or choose another name"
    return SaveFailed(f"could not save: {what}", where=path, do=do)
