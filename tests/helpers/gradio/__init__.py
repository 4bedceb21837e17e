"""Environments with a host's own gradio, made once and kept in the cache.

They lie in ``dreambooth-tests`` below XDG_CACHE_HOME (``~/.cache``), named by host, Python and
the pins, so that a change of those makes a new one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.environment import clean_environment
from dreambooth_core.jobs import FileLock

HERE = Path(__file__).parent
HOSTS = ("a1111", "forge")

# At import: each test has an empty cache of its own.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreambooth-tests"
PATIENCE = 480.0
"""Seconds that another process may take that makes the same environment."""


def python_of(host: str) -> Path:
    """The Python that has the host's gradio. Skips the test where the index cannot be reached."""
    pins = HERE / f"{host}.txt"
    version = "".join(map(str, sys.version_info[:2]))
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:10]
    home = CACHE / f"{host}-py{version}-{digest}"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    CACHE.mkdir(parents=True, exist_ok=True)
    lock = FileLock(CACHE / f"{home.name}.lock")
    if not lock.acquire(PATIENCE):
        pytest.skip(f"another process makes {home}")
    try:
        if not (home / "ready").is_file():
            _make(home, python, pins)
    finally:
        lock.release()
    return python


def _make(home: Path, python: Path, pins: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(pins)],
    ):
        done = subprocess.run(
            command, env=clean_environment(), capture_output=True, text=True, check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
            pytest.skip(f"{pins.stem}'s gradio cannot be installed here: {said[-1]}")
    (home / "ready").touch()
