"""Which libraries are there, and whether they can be imported."""

from __future__ import annotations

import importlib
import importlib.metadata
import subprocess
import sys

from dreambooth_core.diagnosis.facts import Package

REQUIRED = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "omegaconf")
OPTIONAL = ("bitsandbytes", "xformers", "torchvision")

_ATTRIBUTES = {"diffusers": "UNet2DConditionModel", "transformers": "CLIPTextModel"}
"""What to ask of packages that import their parts only when asked."""

ALONE = ("torchvision", "xformers")
"""Imported in a process of their own: a build for another torch can take the process along."""

TRY_SECONDS = 120


def look(name: str) -> Package:
    """The version of a package, and what importing it says."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Package(name, None)
    return Package(name, version, _try_alone(name) if name in ALONE else _try_here(name))


def _try_here(name: str) -> str:
    try:
        module = importlib.import_module(name)
        if name in _ATTRIBUTES:
            getattr(module, _ATTRIBUTES[name])
    except (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        return line_of(error)
    return ""


def _try_alone(name: str) -> str:
    try:
        ran = subprocess.run(
            [sys.executable, "-c", f"import {name}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TRY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return line_of(error)
    if ran.returncode == 0:
        return ""
    lines = [line.strip() for line in ran.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"ended with code {ran.returncode}"


def line_of(error: BaseException) -> str:
    """An exception in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip() if lines else ''}"[:300].rstrip(": ")
