"""The bases that come with the package, known here and nowhere else.

Where one is made on another, the package has what they share once. ``shared.json`` in its folder
names each such file or folder and where the other has it; the whole, as diffusers reads it, is put
together in the user's folder for caches when it is first asked for.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dreambooth_core.disk import cache_folder, copy_file, replacing_folder, sha256

ASSETS = Path(__file__).resolve().parent.parent / "assets"

EMBEDDED = ("pocket", "pocket-flow")
"""Their names; the first is meant where none is named."""

SHARED = "shared.json"


def embedded_folder(name: str = EMBEDDED[0]) -> Path:
    """Where the package keeps an embedded base, without what it shares with another."""
    return ASSETS / name


def whole_folder(name: str) -> Path:
    """An embedded base as a folder in diffusers' layout.

    Raises:
        SaveFailed: it is to be put together, and the user's folder for caches cannot be written.
    """
    sources = _sources(name)
    if all(path.is_relative_to(ASSETS / name) for path in sources.values()):
        return ASSETS / name
    digests = {place: sha256(path) for place, path in sorted(sources.items())}
    key = hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    folder = cache_folder() / f"{name}-{key}"
    if not folder.is_dir():
        with replacing_folder(folder) as part:
            for place, path in sources.items():
                copy_file(path, part / place)
    return folder


def _sources(name: str) -> dict[str, Path]:
    """Every file of the whole by its place in it, with ``/`` on every system."""
    found = _files(ASSETS / name, "")
    if (shared := found.pop(SHARED, None)) is not None:
        for place, origin in json.loads(shared.read_text(encoding="utf-8")).items():
            found |= _files(ASSETS / origin, place)
    return found


def _files(root: Path, place: str) -> dict[str, Path]:
    """The files of a folder, or one file, by their places under ``place``."""
    if root.is_file():
        return {place: root}
    below = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {f"{place}/{name}" if place else name: path for name, path in below.items()}
