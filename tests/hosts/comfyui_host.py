"""Where a real ComfyUI is, for tests: ``COMFYUI_DIR``, and ``COMFYUI_PYTHON`` if it has no venv.

It must not be one that somebody uses: tests put files into its folders.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def folder() -> Path:
    """ComfyUI's folder; skips the test where none is named."""
    named = os.environ.get("COMFYUI_DIR")
    if not named:
        pytest.skip("COMFYUI_DIR does not name a ComfyUI to test with")
    path = Path(named)
    if not (path / "main.py").is_file():
        pytest.skip(f"COMFYUI_DIR: there is no main.py in {path}")
    return path


def python(host: Path) -> str:
    """Its Python."""
    places = [host / "venv", host / ".venv", host.with_name(f"{host.name}-venv")]
    found = [p / "bin" / "python" for p in places] + [p / "Scripts" / "python.exe" for p in places]
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        return named
    for path in found:
        if path.exists():
            return str(path)
    pytest.skip("COMFYUI_PYTHON does not name ComfyUI's Python, and it has no venv beside it")


def environment() -> dict[str, str]:
    """Variables for its processes: no hub, one thread."""
    return os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
