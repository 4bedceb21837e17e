"""What transformers finds out at every import by reading its 1,700 files, kept on the disk.

It looks for the names that each of its models exports, and does so twice: half a second of a
start. Here the answer is kept in the user's folder of caches, together with the time and size of
every file that it was read from, and read again as long as these are the same.

Called in the engine's own processes only, by :mod:`dreambooth_core.deferral`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from dreambooth_core.disk import cache_folder, write_json
from dreambooth_core.errors import SaveFailed

FUNCTION = "create_import_structure_from_path"
"""What reads a folder of transformers; it calls itself for the folders in it."""


def keep_walk(module: ModuleType) -> None:
    """Makes ``transformers.utils.import_utils`` ask here first. Nothing happens where the version
    does not have the function."""
    walk = getattr(module, FUNCTION, None)
    if walk is None or module.__file__ is None:
        return
    reader = Path(module.__file__)
    models = os.path.join(reader.parents[1], "models")

    @functools.wraps(walk)
    def ask(module_path: str | os.PathLike[str]) -> Any:
        folder = os.path.dirname(module_path) if os.path.isfile(module_path) else module_path
        if os.fspath(folder) != models:
            return walk(module_path)
        return kept(reader, Path(models), functools.partial(walk, models))

    setattr(module, FUNCTION, ask)


def kept(reader: Path, models: Path, walk: Callable[[], Any]) -> Any:
    """The names of what lies in ``models``, from the disk if nothing changed there.

    Args:
        reader: the file whose code ``walk`` is.
        models: the folder.
        walk: reads it: nested dictionaries with names and sets of names as keys.
    """
    stamp = _stamp(reader, models)
    place = hashlib.sha256(os.fsencode(models)).hexdigest()[:16]
    file = None
    with suppress(OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        file = cache_folder() / f"transformers-{place}.json"
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["stamp"] == stamp:
            return _decoded(found["names"])
    names = walk()
    if file is not None:
        with suppress(SaveFailed, OSError, TypeError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, {"stamp": stamp, "names": _encoded(names)})
    return names


def _stamp(reader: Path, models: Path) -> str:
    """Changes with any file that is read."""
    digest = hashlib.sha256()
    for name, size, time in sorted([_file(reader), *_files(os.fspath(models))]):
        digest.update(f"{name}\0{size}\0{time}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _file(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return os.fspath(path), status.st_size, status.st_mtime_ns


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _files(entry.path)
            elif entry.name.endswith(".py"):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns


def _encoded(value: Any) -> Any:
    """As JSON has it: a dictionary as pairs, a set as a sorted list with a mark.

    Raises:
        TypeError: something else is in it.
    """
    if isinstance(value, dict):
        return {"": [[_encoded(key), _encoded(each)] for key, each in value.items()]}
    if isinstance(value, set | frozenset):
        return {type(value).__name__: sorted(value)}
    if isinstance(value, str):
        return value
    raise TypeError(type(value).__name__)


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        return value
    [(kind, content)] = value.items()
    if kind == "":
        return {_decoded(key): _decoded(each) for key, each in content}
    return {"set": set, "frozenset": frozenset}[kind](content)
