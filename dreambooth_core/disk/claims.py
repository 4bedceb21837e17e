"""Places to write in beside what is to be replaced, and what becomes of them if the writer dies.

Beside ``NAME`` there are, while it is written,

``.NAME.TOKEN.lock``
    open and locked by the writer for as long as it lives: the system lets go of the lock however
    the writer ends, in whatever container or on whatever machine it ran, and no process number is
    compared with another. It comes first and goes last.
``.NAME.TOKEN.part``
    what is being written: worth nothing without a plan.
``.NAME.TOKEN.old``
    a folder for what has given way.

Where several names, or a whole folder, change at once, all that is new is first completed in
``.part`` and brought to the disk. Then the *plan*, which names all that goes and comes, is written
into the lock file. From then on whoever finds the files without a living writer does the rest:
first everything old is moved out, then everything new in. So at each moment what can be seen is
all old or all new, and in between, for the time of some renames, incomplete; never a mixture.
Without a plan nothing has been moved, and what is found is deleted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import secrets
import stat
from collections.abc import Collection
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypedDict

from dreambooth_core.disk.locks import take
from dreambooth_core.disk.system import NEW, discard, rename, sync_folder, sync_tree
from dreambooth_core.errors import SaveFailed

log = logging.getLogger(__name__)

_OURS = re.compile(r"(\..+\.[0-9a-f]{16})\.(?:lock|part|old)", re.DOTALL)
_LONGEST = 100
"""Bytes of the name that are repeated in names of ours, of the 255 that most systems allow."""
_LOCKED_BYTE = 1 << 30
"""Which one Windows locks: far behind the plan, so that this can be read."""

_take = partial(take, byte=_LOCKED_BYTE)
_tidied: set[Path] = set()
"""Folders in which this process has cleared up."""


class Plan(TypedDict):
    """What an exchange replaces: names in one folder."""

    out: list[str]
    new: list[str]


class Claim:
    """A place to write in beside ``folder/name``: ours while we live, cleared when we are done."""

    def __init__(self, folder: Path, name: str) -> None:
        """Raises ``OSError``."""
        if folder not in _tidied:
            tidy(folder)
            _tidied.add(folder)
        self.folder = folder
        short = name.encode("utf-8", "surrogateescape")[:_LONGEST].decode("utf-8", "ignore")
        while True:
            stem = f".{short}.{secrets.token_hex(8)}"
            self.lock, self.part, self.old = _paths(folder, stem)
            self.handle = os.open(self.lock, NEW, 0o666)
            # Whoever clears up may have come between these two lines, and taken it for a dead one.
            if _take(self.handle) is not False and self.lock.exists():
                return
            os.close(self.handle)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """What cannot be deleted now (somebody reads it, the disk fails) is so at a next start."""
        try:
            _clear(self.lock, self.part, self.old, self.handle)
        except OSError as problem:
            _tidied.discard(self.folder)
            log.debug("%s is cleared up later: %s", self.part, problem)

    def commit(self, names: Collection[str]) -> None:
        """What lies in the folder ``part`` takes the place of all ``names`` in ``folder``.

        Raises:
            SaveFailed: a device, a fifo or the like is in the way.
            OSError: the disk fails; everything old is back in its place, or will be replaced
                whole at the next start.
        """
        sync_tree(self.part)
        new = sorted(os.listdir(self.part), key=lambda name: not (self.part / name).is_dir())
        there = [name for name in {*names, *new} if os.path.lexists(self.folder / name)]
        for name in {*there} & {*new}:
            refuse_other_kinds(self.folder / name, folder=(self.part / name).is_dir())
        out = sorted(there, key=lambda name: (self.folder / name).is_dir())
        if len(new) == 1 and not {*out} - {*new} and not (out and (self.part / new[0]).is_dir()):
            rename(self.part / new[0], self.folder / new[0])
        else:
            self._exchange({"out": out, "new": new})
        sync_folder(self.folder)

    def _exchange(self, plan: Plan) -> None:
        self.old.mkdir()
        data = json.dumps(plan).encode()
        os.lseek(self.handle, 0, os.SEEK_SET)
        try:
            while data:
                data = data[os.write(self.handle, data) :]
            os.fsync(self.handle)
            _go_forward(self.folder, self.part, self.old, plan)
        except BaseException:
            with contextlib.suppress(OSError):  # or the plan stands, and is done at the next start
                _go_back(self.folder, self.part, self.old, plan)
                os.ftruncate(self.handle, 0)
                self.old.rmdir()
            raise


def tidy(folder: str | os.PathLike[str]) -> None:
    """Ends what killed writers left in ``folder``: does their plans, deletes what has none.

    What living processes write is left alone, as is everything where the file system cannot lock
    or we may not write.
    """
    folder = Path(folder)
    try:
        found = {match[1] for name in os.listdir(folder) if (match := _OURS.fullmatch(name))}
    except (OSError, ValueError):  # ValueError: no name at all, such as one with a zero byte
        return
    for stem in sorted(found):
        try:
            _finish(folder, stem)
        except OSError as problem:
            log.debug("%s cannot be cleared up: %s", folder / stem, problem)


def refuse_other_kinds(path: Path, *, folder: bool = False) -> None:
    """Refuses to replace anything but a file, or a folder by a folder; links are followed.

    Raises:
        SaveFailed: something else is there.
        OSError: it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except ValueError as error:
        raise SaveFailed(f"could not save: {error}", where=path) from error
    if folder and not stat.S_ISDIR(mode):
        raise SaveFailed(
            "could not save: a file of this name exists, and a folder is to be written",
            where=path,
            do="Choose another name",
        )
    if not folder and not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or the like"
        raise SaveFailed(
            f"could not save: {kind} of this name exists", where=path, do="Choose another file name"
        )


def _paths(folder: Path, stem: str) -> tuple[Path, Path, Path]:
    return folder / f"{stem}.lock", folder / f"{stem}.part", folder / f"{stem}.old"


def _finish(folder: Path, stem: str) -> None:
    lock, part, old = _paths(folder, stem)
    try:
        handle = os.open(lock, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:  # it goes last: nobody writes here any more
        discard(part)
        return
    try:
        if not _take(handle) or not lock.exists():
            os.close(handle)
            return
        if plan := _plan_in(handle):
            _go_forward(folder, part, old, plan)
            sync_folder(folder)
    except OSError:
        os.close(handle)
        raise
    _clear(lock, part, old, handle)


def _clear(lock: Path, part: Path, old: Path, handle: int) -> None:
    """Deletes what a writer has left, the lock at the very last, and closes it in any case."""
    closed = False
    try:
        if _plan_in(handle):
            if not part.is_dir() or not os.listdir(part):
                discard(old)
                discard(part)
            else:  # neither done nor undone: a next start does it
                raise OSError(errno.EBUSY, "an exchange is not complete")
        else:
            discard(part)
            if old.is_dir():
                old.rmdir()
        if os.name == "nt":  # which deletes nothing that is open
            os.close(handle)
            closed = True
        lock.unlink(missing_ok=True)
    finally:
        if not closed:
            os.close(handle)


def _plan_in(handle: int) -> Plan | None:
    """The plan in a lock file; None if there is none, or none that was written to its end."""
    os.lseek(handle, 0, os.SEEK_SET)
    data = b""
    while block := os.read(handle, 1 << 16):
        data += block
    try:
        plan = json.loads(data)
        return {"out": [str(n) for n in plan["out"]], "new": [str(n) for n in plan["new"]]}
    except (ValueError, KeyError, TypeError):
        return None


def _go_forward(folder: Path, part: Path, old: Path, plan: Plan) -> None:
    if all(os.path.lexists(part / name) for name in plan["new"]):  # none is in its place yet
        for name in plan["out"]:
            if os.path.lexists(folder / name) and not os.path.lexists(old / name):
                rename(folder / name, old / name)
    for name in plan["new"]:
        if os.path.lexists(part / name):
            rename(part / name, folder / name)


def _go_back(folder: Path, part: Path, old: Path, plan: Plan) -> None:
    for name in plan["new"]:
        if not os.path.lexists(part / name):
            rename(folder / name, part / name)
    for name in plan["out"]:
        if os.path.lexists(old / name):
            rename(old / name, folder / name)
