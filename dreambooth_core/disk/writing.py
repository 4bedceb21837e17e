"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dreambooth_core.disk.claims import Claim, refuse_other_kinds, tidy
from dreambooth_core.disk.system import NEW, discard, make_folder, rename, save_failed, sync_folder
from dreambooth_core.errors import SaveFailed

CHUNK = 16 * 1024 * 1024
"""Bytes read in one go."""

_staged: set[Path] = set()
"""Folders that are written to as a whole: a file in them needs nothing beside it."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, follow: bool = True) -> Iterator[BinaryIO]:
    """A file open for writing that takes ``path``'s place when the block ends without an error.

    A reader sees the old file or the new one, also after a power cut. Its mode is 0666 less the
    umask: other programs read what is written here. Missing folders are made. Where ``path`` is a
    link, what it names is replaced and the link stays; without ``follow`` the link gives way, so
    that what lies in a folder of others leads nowhere. Only regular files are replaced.

    Raises:
        SaveFailed: the disk is full, the folder may not be written, something else than a file
            is there … The old file is intact; or, where nothing but the last flush of the
            folder failed, the new one is there whole.
    """
    path = Path(path)
    try:
        if _is_staged(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, NEW & ~os.O_EXCL | os.O_TRUNC, 0o666), "w+b") as file:
                yield file
                _sync(file)
            return
        if follow or not path.is_symlink():
            refuse_other_kinds(path)
            path = _behind_links(path)
        make_folder(path.parent)
        with Claim(path.parent, path.name) as claim:
            with os.fdopen(os.open(claim.part, NEW, 0o666), "w+b") as file:
                yield file
                _sync(file)
            rename(claim.part, path)
            sync_folder(path.parent)
    except OSError as error:
        raise save_failed(path, error) from error
    except RuntimeError as error:
        if not isinstance(error.__context__, OSError):
            raise
        # What torch.save makes of a file that cannot be written to.
        raise save_failed(path, error.__context__) from error.__context__


@contextlib.contextmanager
def exchanging(folder: str | os.PathLike[str], names: Collection[str]) -> Iterator[Path]:
    """Yields an empty folder; what the block writes there takes the place of all ``names``.

    Those of ``names`` (files and folders in ``folder``) that the block does not write are gone
    afterwards; everything else in ``folder`` stays. For the time of some renames what is replaced
    is absent: see :mod:`dreambooth_core.disk.claims`. Files are to be written with this module.

    Raises:
        SaveFailed: something could not be written. Everything old is intact.
    """
    folder = Path(folder)
    if _is_staged(folder):
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    part = folder
    try:
        make_folder(folder)
        with Claim(folder, min(names, key=len)) as claim:
            part = claim.part
            part.mkdir()
            _staged.add(part)
            try:
                yield part
            finally:
                _staged.discard(part)
            claim.commit(names)
    except OSError as error:
        raise save_failed(folder, error) from error
    except SaveFailed as error:
        where = (error.where or str(folder)).replace(str(part), str(folder))
        raise SaveFailed(error.what, where=where, do=error.do) from error.__cause__


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str], names: Collection[str] = ()) -> Iterator[Path]:
    """Yields an empty folder that takes ``path``'s place when the block ends without an error.

    If ``path`` holds anything but ``names``, that stays, and only ``names`` are exchanged (see
    :func:`exchanging`); so too where the folder itself cannot be moved. Without ``names`` all
    that was there goes. Where ``path`` is a link, what it names is replaced and the link stays.

    Raises:
        SaveFailed: something could not be written, or a file is there. Everything old is intact.
    """
    path = Path(path)
    if _is_staged(path):
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    try:
        refuse_other_kinds(path, folder=True)
        path = _behind_links(path.absolute())
        tidy(path)
        apart = path.is_dir() and (
            (names and {*os.listdir(path)} - {*names})
            or os.path.ismount(path)
            or not os.access(path.parent, os.W_OK)
        )
    except OSError as error:
        raise save_failed(path, error) from error
    if apart:
        with exchanging(path, names) as part:
            yield part
        return
    with exchanging(path.parent, [path.name]) as part:
        (part / path.name).mkdir()
        yield part / path.name


def remove(path: str | os.PathLike[str]) -> bool:
    """Deletes a file or a folder, whole or not at all; False if it cannot be.

    A folder is renamed first: a kill half-way leaves nothing that looks like the whole.
    """
    path = Path(path)
    try:
        if path.is_symlink() or not path.is_dir():
            discard(path)
        else:
            with Claim(path.parent, path.name) as claim:
                rename(path, claim.part)
    except OSError:
        return False
    return True


def settle(path: str | os.PathLike[str]) -> None:
    """What a reader calls first: ends an exchange of ``path`` that a kill has left half done."""
    path = Path(path)
    tidy(path.parent)
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        tidy(path)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, follow: bool = True) -> None:
    """Writes a file whole or not at all; links as in :func:`replacing`. Raises ``SaveFailed``."""
    with replacing(path, follow=follow) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str, *, follow: bool = True) -> None:
    """Writes UTF-8 text with ``\\n`` line ends, as :func:`write_bytes`. Raises ``SaveFailed``."""
    write_bytes(path, text.encode("utf-8"), follow=follow)


def write_json(path: str | os.PathLike[str], value: Any, *, follow: bool = True) -> None:
    """Writes indented JSON, keys in the order given, as :func:`write_bytes`. Raises
    ``SaveFailed``."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", follow=follow)


def copy_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, link: bool = False
) -> None:
    """Puts a copy of a file in ``target``'s place, whole or not at all.

    With ``link`` it is a second name for the same bytes where the disk can: for what is only
    ever replaced and never changed.

    Raises:
        SaveFailed: ``source`` cannot be read, or the copy not be written.
    """
    target = Path(target)
    if link and not _is_staged(target):
        try:
            refuse_other_kinds(target)
            make_folder(target.parent)
            with Claim(target.parent, target.name) as claim:
                os.link(source, claim.part)
                rename(claim.part, target)
                sync_folder(target.parent)
            return
        except OSError:  # another disk, or one without links
            pass
    with replacing(target) as writing, Path(source).open("rb") as reading:
        shutil.copyfileobj(reading, writing, CHUNK)


def sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_staged(path: Path) -> bool:
    return bool(_staged) and not _staged.isdisjoint([path, *path.parents])
