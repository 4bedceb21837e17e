"""A small clone with small locks, and a folder of wheels instead of a package index."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dreambooth_core.environment.makers import base_python
from tests.install.wheelhouse import small_wheelhouse

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("install.py", "pyproject.toml", "LICENSE", "NOTICE")


@dataclass
class Clone:
    """A clone whose engine needs two tiny packages and no torch."""

    root: Path
    home: Path
    environ: dict[str, str] = field(default_factory=dict)
    """Variables on top of the usual ones; the environment lies at DREAMBOOTH_ENV."""
    said: str = ""
    """What the build said, where one was made."""

    def variables(self) -> dict[str, str]:
        """What install.py sees."""
        usual = {
            k: v for k, v in os.environ.items() if not k.upper().startswith(("PIP_", "PYTHON"))
        }
        return {**usual, "PIP_CONFIG_FILE": os.devnull, **self.environ}

    def command(self, *arguments: str, python: str | None = None) -> list[str]:
        """The command line of install.py."""
        return [python or base_python(), str(self.root / "install.py"), *arguments]

    def install(
        self, *arguments: str, python: str | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs install.py without torch and returns what it said."""
        command = self.command(*arguments, python=python)
        return subprocess.run(
            command,
            cwd=cwd or self.root,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts install.py in a process group of its own and does not wait."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def lock(self, *lines: str) -> None:
        """Replaces what the locks hold beside pip and flit."""
        fixed = [f"{name}=={importlib.metadata.version(name)}" for name in ("pip", "flit_core")]
        text = "# download-bytes: 1000000\n" + "\n".join([*fixed, *lines]) + "\n"
        for name in ("py310", "py311"):
            (self.root / "locks" / f"{name}.txt").write_text(text, encoding="utf-8")

    def leftovers(self) -> list[str]:
        """What lies where the environment would be, without the lock and the log."""
        there = self.home.parent.iterdir() if self.home.parent.is_dir() else ()
        return sorted(p.name for p in there if p.suffix not in (".lock", ".log"))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pip, flit_core, and two versions of two tiny packages."""
    folder = tmp_path_factory.mktemp("wheels")
    small_wheelhouse(folder)
    return folder


@pytest.fixture
def clone(tmp_path: Path, wheels: Path) -> Clone:
    """A small clone; nothing is installed yet."""
    return make_clone(tmp_path, wheels)


def make_clone(folder: Path, wheels: Path) -> Clone:
    """Lays a small clone into a folder."""
    root = folder / "a clone"  # a space: paths are quoted wrongly sooner or later
    (root / "locks").mkdir(parents=True)
    for name in COPIED:
        shutil.copy(ROOT / name, root)
    (root / "README.md").write_text("# A small clone\n", encoding="utf-8")
    package = root / "dreambooth_core"
    package.mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "dreambooth_core" / name, package)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "dreambooth_core/environment", package / "environment", ignore=ignored)
    home = folder / "the env" / "engine"
    clone = Clone(root, home)
    clone.environ = {
        "DREAMBOOTH_ENV": str(home),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels.as_uri(),
    }
    clone.lock("tinyone==1.0", "tinytwo==1.0")
    for name in ("py310", "py311"):
        test_lock = root / "locks" / f"{name}-test.txt"
        test_lock.write_text("# download-bytes: 1000\ntinytest==1.0\n", encoding="utf-8")
    return clone


@pytest.fixture(scope="session")
def python() -> str:
    """The Python under the one that runs the tests."""
    return base_python() or sys.executable
