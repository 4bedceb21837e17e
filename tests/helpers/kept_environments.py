"""Environments of other packages, made once and kept in the cache.

They lie in DREAMBOOTH_TESTS_CACHE (``dreambooth-tests`` in XDG_CACHE_HOME or ``~/.cache``), named
by their purpose, the Python and what they are made of, so that a change of those makes a new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dreambooth_core.jobs import FileLock

# At import, and handed on: each test has an empty cache of its own.
_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = Path(os.environ.setdefault("DREAMBOOTH_TESTS_CACHE", str(_CACHES / "dreambooth-tests")))
PATIENCE = 480.0
"""Seconds that another process may take that makes the same environment."""


def kept(name: str, contents: bytes, make: Callable[[Path, Path], None]) -> Path:
    """The Python of an environment that is made once, by one process, and lies in the cache.

    Args:
        name: what its folder's name begins with.
        contents: what it is made of: of something else another is made.
        make: fills the folder, which does not exist yet, so that its Python (the second argument)
            is there.
    """
    version = "".join(map(str, sys.version_info[:2]))
    digest = hashlib.sha256(contents).hexdigest()[:10]
    home = CACHE / f"{name}-py{version}-{digest}"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = FileLock(CACHE / f"{home.name}.lock")
    if not lock.acquire(PATIENCE):
        pytest.skip(f"another process makes {home}")
    try:
        if not (home / "ready").is_file():
            shutil.rmtree(home, ignore_errors=True)
            make(home, python)
            (home / "ready").touch()
    finally:
        lock.release()
    return python
