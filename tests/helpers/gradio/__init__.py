"""Environments with a host's own gradio, made once and kept in the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dreambooth_core.environment import clean_environment
from tests.helpers.kept_environments import kept

HERE = Path(__file__).parent
HOSTS = ("a1111", "forge")


def python_of(host: str) -> Path:
    """The Python that has the host's gradio. Skips the test where the index cannot be reached."""
    pins = HERE / f"{host}.txt"
    return kept(host, pins.read_bytes(), lambda home, python: _make(home, python, pins))


def _make(home: Path, python: Path, pins: Path) -> None:
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
