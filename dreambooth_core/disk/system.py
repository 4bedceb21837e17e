"""The steps that everything on the disk is made of, and what systems do differently in them."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_core.errors import SaveFailed

NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
"""How a file is opened that must not be there yet."""


def rename(source: Path, target: Path) -> None:
    """Renames, tried for a second where Windows holds a file for a virus scanner."""
    for wait in (0.1, 0.3, 0.6, None):
        try:
            os.replace(source, target)
            return
        except PermissionError:
            if wait is None or os.name != "nt":
                raise
            time.sleep(wait)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder last through a power cut, where the system can.

    Raises:
        OSError: the disk is full or failing.
    """
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:  # many a network disk cannot do this, and says so in its own way
        if error.errno in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise


def sync_tree(folder: Path) -> None:
    """:func:`sync_folder` for a folder and all below it."""
    for place, _, _ in os.walk(folder):
        sync_folder(Path(place))


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they are missing, lastingly.

    Raises:
        OSError: it cannot be made, or a file is in the way.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path == path.parent:
            break
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def discard(path: Path) -> None:
    """Deletes a file or a folder, read-only ones too; nothing if there is none.

    Raises:
        OSError: somebody holds it open (Windows), or it may not be deleted.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
    elif sys.version_info >= (3, 12):
        shutil.rmtree(path, onexc=_make_writable)
    else:
        shutil.rmtree(path, onerror=_make_writable)


def _make_writable(function: Callable[[str], object], path: str, info: Any) -> None:
    """Windows refuses to delete read-only files; pip's caches and git's packs have some."""
    error: BaseException = info[1] if isinstance(info, tuple) else info
    if isinstance(error, FileNotFoundError):  # gone by itself
        return
    if os.name != "nt" or function not in (os.unlink, os.rmdir):
        raise error
    Path(path).chmod(stat.S_IWRITE)
    function(path)


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


def save_failed(path: Path, error: OSError) -> SaveFailed:
    """The line that a person reads for what the system said about writing ``path``."""
    what, do = _REASONS.get(error.errno or 0, (error.strerror or str(error), None))
    if os.name == "nt" and isinstance(error, PermissionError):
        what = "this file may not be replaced; another program may have it open"
        do = "Close that program, or choose another name"
    return SaveFailed(f"could not save: {what}", where=path, do=do)


def cache_folder() -> Path:
    """The folder for what can be made again, among the user's caches as the system has them. It
    need not be there.

    Raises:
        RuntimeError: the user has no home.
    """
    home = Path.home()
    if sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return caches / "dreambooth"
