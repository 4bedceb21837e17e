"""What belongs into the environment, and whether that is what is there."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.environment.layout import Layout
from dreambooth_core.environment.machine import Machine
from dreambooth_core.environment.pins import (
    Pin,
    hashes_of_torch,
    read_pins,
    read_wheels,
    without_hashes,
)

EDITION = "1"
"""Raised when a new installer builds an environment of another make from the same lock."""


@dataclass(frozen=True)
class Recipe:
    """The locks for one version of Python."""

    lock: Path
    test_lock: Path

    def pins(self, test: bool = False) -> list[Pin]:
        """Every package of the lock, with hashes."""
        return read_pins(_text(self._file(test)))

    def pin(self, package: str) -> Pin:
        """What the lock holds for a package.

        Raises:
            KeyError: the lock does not hold it.
        """
        return {pin.name: pin for pin in reversed(self.pins())}[package]

    def beside(self, name: str) -> list[Pin]:
        """What another lock holds: ``uv``, or ``torch-cu126`` for what that build needs on top.

        Empty where there is no such lock.
        """
        return read_pins(_text(self.lock.with_name(f"{name}.txt")))

    def torch_hashes(self, versions: Iterable[str], machine: Machine) -> tuple[str, ...]:
        """The published digests of torch's own wheels of some versions that serve a machine and
        this Python."""
        wheels = read_wheels(_text(self.lock.with_name("torch.sha256")))
        python = sys.version_info[:2]
        return hashes_of_torch(wheels, versions, python, machine.system, machine.architecture)

    def download_bytes(self, test: bool = False) -> int:
        """About how much the lock downloads, as tools/lock.py measured it."""
        found = re.search(r"^# download-bytes: (\d+)", _text(self._file(test)), re.MULTILINE)
        return int(found[1]) if found else 0

    def _file(self, test: bool) -> Path:
        return self.test_lock if test else self.lock


@dataclass(frozen=True)
class Status:
    """Whether an environment can be used, and if not, why."""

    ready: bool
    reason: str
    """Empty when ready; else a few words: ``there is none yet``."""
    project_ready: bool = True
    """False when only the ``dreambooth`` command has to be set up again (seconds, no download)."""


def recipe_for(layout: Layout, version: tuple[int, int] | None = None) -> Recipe:
    """The locks for a version of Python (the running one unless told)."""
    name = "py310" if (version or sys.version_info[:2]) < (3, 11) else "py311"
    locks = layout.root / "locks"
    return Recipe(lock=locks / f"{name}.txt", test_lock=locks / f"{name}-test.txt")


def packages_fingerprint(recipe: Recipe, asked: str, environ: Mapping[str, str]) -> str:
    """Changes when the environment has to be built anew: the lock, or the wanted torch.

    The machine is not looked at: asking a driver takes long, and an environment that works is
    not thrown away because a GPU is unplugged today. ``doctor`` compares the two. Nor are the
    hashes looked at: they change when a package gets a wheel for another system.
    """
    index = environ.get("TORCH_INDEX_URL", "")
    return _digest(EDITION, without_hashes(_text(recipe.lock)), asked, index)


def project_fingerprint(layout: Layout) -> str:
    """Changes when the ``dreambooth`` command has to be set up again."""
    return _digest(EDITION, _text(layout.root / "pyproject.toml"), str(layout.root))


def test_fingerprint(recipe: Recipe) -> str:
    """Changes when the test tools have to be installed again."""
    return _digest(EDITION, without_hashes(_text(recipe.test_lock)))


def status(
    layout: Layout, asked: str | None = None, environ: Mapping[str, str] | None = None
) -> Status:
    """Whether the environment is there, whole, and what the locks say. Takes milliseconds.

    ``asked`` is the wanted build of torch; None keeps the one that was asked for before.
    """
    known = layout.known()
    if known is None:
        return Status(False, "there is none yet")
    if not known.whole:
        return Status(False, "an earlier installation did not end")
    if known.home != str(layout.home):
        return Status(False, "it was moved from elsewhere")
    own = layout.boot if known.kind == "target" else layout.venv_python
    if not Path(known.base).exists() or not own.exists():
        return Status(False, "the Python that it was made with is gone")
    recipe = recipe_for(layout, known.version)
    variables = os.environ if environ is None else environ
    if known.packages != packages_fingerprint(recipe, asked or known.asked, variables):
        return Status(False, "the locked versions or the choice of torch changed")
    return Status(True, "", project_ready=known.project == project_fingerprint(layout))


def _text(path: Path) -> str:
    """A file's text; empty where there is none, so that its absence has a fingerprint too."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
