"""Which Python runs the engine, and with which environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import dreambooth_core
from dreambooth_core.errors import UserError

VARIABLE = "DREAMBOOTH_ENV"
"""Names the folder of the engine's environment, for those who do not want it in the clone."""

_LEAKS = ("VIRTUAL_ENV", "VIRTUAL_ENV_PROMPT", "__PYVENV_LAUNCHER__", "_OLD_VIRTUAL_PATH")
_PIP_LEAKS = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV")
_HOST_ALLOCATOR = "cudaMallocAsync"


def clone() -> Path:
    """The folder that holds ``dreambooth_core``: the clone, or site-packages if installed."""
    return Path(dreambooth_core.__file__).resolve().parent.parent


def python_of(folder: Path, *, windows: bool = os.name == "nt") -> Path:
    """Where a virtual environment keeps its interpreter."""
    return folder / "Scripts" / "python.exe" if windows else folder / "bin" / "python"


def engine_python(
    environ: Mapping[str, str] | None = None,
    *,
    root: Path | None = None,
    windows: bool = os.name == "nt",
) -> Path:
    """The interpreter of the engine: of ``DREAMBOOTH_ENV``, else of the clone's ``.venv``, else
    this one (an installed package, a test).

    Raises:
        UserError: ``DREAMBOOTH_ENV`` names a folder without an interpreter.
    """
    chosen = (os.environ if environ is None else environ).get(VARIABLE, "").strip()
    if chosen:
        python = python_of(Path(chosen).expanduser(), windows=windows)
        if not python.is_file():
            raise UserError(
                f"{VARIABLE} names an environment that has no Python",
                where=python,
                do="Run 'python install.py' to make it, or correct the variable.",
            )
        return python
    python = python_of((root or clone()) / ".venv", windows=windows)
    return python if python.is_file() else Path(sys.executable)


def clean_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without what a host's Python, pip or allocator left in it.

    Nothing named ``PYTHON…`` passes (a host's PYTHONPATH would bring the host's packages), nor
    pip's places of installation; mirrors, proxies and the choice of devices do.
    """
    source = os.environ if environ is None else environ
    clean = {key: value for key, value in source.items() if not _leaks(key, value)}
    clean["PYTHONUTF8"] = "1"
    clean["PYTHONUNBUFFERED"] = "1"
    clean["PYTHONFAULTHANDLER"] = "1"
    return clean


def leaked(environ: Mapping[str, str] | None = None) -> list[str]:
    """Names of variables that would bring another Python's packages into this one."""
    source = os.environ if environ is None else environ
    wanted = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    return sorted(key for key in source if key.upper() in wanted and source[key])


def _leaks(key: str, value: str) -> bool:
    name = key.upper()  # Windows does not tell cases apart
    if name.startswith("PYTHON") or name in _LEAKS or name in _PIP_LEAKS:
        return True
    # ComfyUI sets this for itself; its allocator has no expandable segments.
    return name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF") and _HOST_ALLOCATOR in value
