"""A small clone with small locks, and a folder of wheels instead of a package index."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dreambooth_core.environment.makers import base_python
from dreambooth_core.environment.pins import Pin, read_pins
from tests.install.wheelhouse import small_wheelhouse, unpacked_seed

ROOT = Path(__file__).resolve().parents[2]
SEED = "seed"
"""In the folder of wheels: see :func:`tests.install.wheelhouse.unpacked_seed`."""
COPIED = ("install.py", "pyproject.toml", "LICENSE", "NOTICE")


def cpu_seconds() -> float:
    """What the children so far computed: unlike a clock it does not count other people's load."""
    return os.times().children_user + os.times().children_system


@dataclass
class Clone:
    """A clone whose engine needs two tiny packages and no torch."""

    root: Path
    home: Path
    wheels: Path
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
        for name in ("py310", "py311"):
            self.write_lock(name, *fixed, *lines)

    def write_lock(self, name: str, *lines: str) -> None:
        """Writes one lock, with the hashes of the wheels as they are now and as they are published.

        pip and flit are repacked here, and have hashes of their own.
        """
        text = (ROOT / "locks" / "py311.txt").read_text(encoding="utf-8")
        published = {pin.requirement: pin.hashes for pin in read_pins(text)}
        pins = [
            Pin(
                line,
                "",
                (self.digest(line) or "0" * 64, *published.get(line.replace("_", "-"), ())),
            )
            for line in lines
        ]
        text = "\n".join(["# download-bytes: 1000000", *(pin.text for pin in pins), ""])
        (self.root / "locks" / f"{name}.txt").write_text(text, encoding="utf-8")

    def digest(self, requirement: str) -> str:
        """The digest of the wheel of ``name==version``; empty where there is none."""
        name, _, version = requirement.partition("==")
        found = list(self.wheels.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
        return hashlib.sha256(found[0].read_bytes()).hexdigest() if found else ""

    def leftovers(self) -> list[str]:
        """What lies where the environment would be, without the lock and the log."""
        there = self.home.parent.iterdir() if self.home.parent.is_dir() else ()
        return sorted(p.name for p in there if p.suffix not in (".lock", ".log"))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pip, flit_core, and two versions of two tiny packages."""
    folder = tmp_path_factory.mktemp("wheels")
    small_wheelhouse(folder)
    unpacked_seed(folder / SEED)
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
    for name in ("environment", "disk"):  # all that install.py needs of the engine
        shutil.copytree(ROOT / "dreambooth_core" / name, package / name, ignore=ignored)
    home = folder / "the env" / "engine"
    clone = Clone(root, home, wheels)
    clone.environ = {
        "DREAMBOOTH_ENV": str(home),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels.as_uri(),
    }
    if (wheels / SEED).is_dir():
        clone.environ["PYTHONPATH"] = str(wheels / SEED)
    clone.lock("tinyone==1.0", "tinytwo==1.0")
    for name in ("py310-test", "py311-test"):
        clone.write_lock(name, "tinytest==1.0")
    for name in ("uv.txt", "torch.sha256"):
        shutil.copy(ROOT / "locks" / name, root / "locks")
    return clone


@pytest.fixture(scope="session")
def python() -> str:
    """The Python under the one that runs the tests."""
    return base_python() or sys.executable
