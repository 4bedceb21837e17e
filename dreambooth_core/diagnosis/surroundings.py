"""Python, the engine's environment, the machine and the folders that are written to."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from dreambooth_core import __version__, environment
from dreambooth_core.diagnosis.facts import Place, Surroundings
from dreambooth_core.environment.machine import detect
from dreambooth_core.environment.plan import advice
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.jobs.environment import clone, leaked

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "DREAMBOOTH_ENV",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HSA_OVERRIDE_GFX_VERSION",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)


def surroundings() -> Surroundings:
    """Everything around torch. Asks the driver's tools, which may take a second."""
    layout = environment.locate(clone())
    state = environment.status(layout)
    better: str | None = None
    with contextlib.suppress(DreamBoothError):
        better = advice(layout)
    free, total = _memory()
    return Surroundings(
        dreambooth=__version__,
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        cores=_cores(),
        memory_free=free,
        memory_total=total,
        environment=str(layout.home),
        inside=_inside(layout.home),
        ready=state.ready,
        reason=state.reason,
        advice=better,
        gpus=tuple(
            f"{gpu.name}, driver {'.'.join(str(part) for part in gpu.driver)}"
            for gpu in detect().nvidia
        ),
        leaked=tuple(leaked()),
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
    )


def place(purpose: str, folder: Path) -> Place:
    """Whether a folder, or the nearest one above it that exists, can be written to."""
    there = folder.expanduser().absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        usage = shutil.disk_usage(there)
        free, total = usage.free, usage.total
    except OSError:
        free, total = 0, 0
    return Place(purpose, str(folder.expanduser().absolute()), _writable(there), free, total)


def hub_cache() -> Path:
    """Where the hub's files go, by the hub's own rules, without importing its library."""
    if os.environ.get("HF_HUB_CACHE"):
        return Path(os.environ["HF_HUB_CACHE"])
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("HF_HOME") or Path(cache) / "huggingface") / "hub"


def _writable(folder: Path) -> bool:
    """Tries it: permission bits do not tell on Windows, in containers, on read-only mounts."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError:
        return False
    return True


def _inside(home: Path) -> bool:
    """Whether this Python's packages are those of the environment in ``home``."""
    if Path(sys.prefix).resolve() == home.resolve():
        return True
    site = home.resolve() / "site"
    return any(Path(path).resolve() == site for path in sys.path if path)


def _memory() -> tuple[int, int]:
    try:
        import psutil
    except ImportError:
        return 0, 0
    memory = psutil.virtual_memory()
    return int(memory.available), int(memory.total)


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
