"""Which command runs the engine's Python, and with which environment variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import dreambooth_core
from dreambooth_core import environment
from dreambooth_core.errors import UserError

VARIABLE = "DREAMBOOTH_ENV"
"""Names the folder of the engine's environment, for those who do not want it in the clone."""

_HOST_ALLOCATOR = "cudaMallocAsync"


def clone() -> Path:
    """The folder that holds ``dreambooth_core``: the clone, or site-packages if installed."""
    return Path(dreambooth_core.__file__).resolve().parent.parent


def engine_command(
    environ: Mapping[str, str] | None = None, *, root: Path | None = None
) -> list[str]:
    """What to put before ``-m module`` to run it in the engine's environment: that of
    ``DREAMBOOTH_ENV``, else the clone's ``.venv``, else this Python (an installed package).

    Raises:
        UserError: ``DREAMBOOTH_ENV`` names a folder that is no environment.
    """
    layout = environment.locate(root or clone(), environ)
    try:
        return layout.command()
    except FileNotFoundError:
        source = os.environ if environ is None else environ
        if source.get(VARIABLE, "").strip():
            raise UserError(
                f"{VARIABLE} names a folder without an environment",
                where=layout.home,
                do="Run 'python install.py' to make it, or correct the variable.",
            ) from None
    return [sys.executable]


def worker_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of a worker: without what a host's Python, pip or allocator set.

    What it prints is written at once, and a crash inside a library leaves a trace.
    """
    clean = environment.clean_environment(environ)
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        # ComfyUI sets this for itself; its allocator has no expandable segments.
        if _HOST_ALLOCATOR in clean.get(name, ""):
            del clean[name]
    clean.update(PYTHONUNBUFFERED="1", PYTHONFAULTHANDLER="1")
    return clean


def leaked(environ: Mapping[str, str] | None = None) -> list[str]:
    """Names of variables that would bring another Python's packages into this one."""
    source = os.environ if environ is None else environ
    wanted = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX"}
    return sorted(key for key in source if key.upper() in wanted and source[key])
