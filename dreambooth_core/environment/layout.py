"""Where the environment is and what lies where in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.environment import marker as markers

MARKER = "dreambooth-env.json"
"""The file that says that a folder is ours, and in what state. Written last when ready."""


@dataclass(frozen=True)
class Layout:
    """The paths of one environment. Two kinds exist:

    ``venv``
        an ordinary virtual environment;
    ``target``
        for a Python that can make none (the embeddable one of ComfyUI's portable build): a
        folder ``site`` of packages, and ``boot.py``, which runs code with those and without
        the Python's own.
    """

    root: Path
    """The clone: the folder that holds install.py and dreambooth_core."""
    home: Path
    """The environment's folder."""

    @property
    def marker(self) -> Path:
        """The state of the environment, as JSON."""
        return self.home / MARKER

    @property
    def previous(self) -> Path:
        """The environment of before, kept until the new one works."""
        return self.home.with_name(self.home.name + ".previous")

    @property
    def lock(self) -> Path:
        """The file that a running installer holds locked."""
        return self.home.with_name(self.home.name + ".lock")

    @property
    def site(self) -> Path:
        """The packages of the ``target`` kind."""
        return self.home / "site"

    @property
    def boot(self) -> Path:
        """The boot script of the ``target`` kind."""
        return self.home / "boot.py"

    @property
    def venv_python(self) -> Path:
        """The interpreter of the ``venv`` kind."""
        if sys.platform == "win32":
            return self.home / "Scripts" / "python.exe"
        return self.home / "bin" / "python"

    @property
    def packages(self) -> list[Path]:
        """The folders of installed packages, of those that are there."""
        venv = ["Lib/site-packages"] if sys.platform == "win32" else ["lib/python3*/site-packages"]
        found = [path for pattern in venv for path in self.home.glob(pattern)]
        return [*found, *([self.site] if self.site.is_dir() else [])]

    def command(self) -> list[str]:
        """What to put before ``-m module``, ``-c code`` or a script to run it in here.

        Raises:
            FileNotFoundError: there is no environment.
        """
        if self.venv_python.exists():
            return [str(self.venv_python)]
        if self.boot.is_file():
            known = markers.read(self.marker)
            return [known.base if known else sys.executable, str(self.boot)]
        raise FileNotFoundError(str(self.home))


def locate(root: Path, environ: Mapping[str, str] | None = None) -> Layout:
    """The environment of the clone at ``root``: ``.venv`` in it, or where DREAMBOOTH_ENV says.

    DREAMBOOTH_ENV helps where the clone's own path is long (Windows ends at 260 characters) or
    its disk is small. A relative one counts from the clone, so that it means the same whatever
    the current folder is. A link is followed: what is replaced is the folder, never the link.
    """
    chosen = (os.environ if environ is None else environ).get("DREAMBOOTH_ENV", "").strip()
    home = root / Path(chosen).expanduser() if chosen else root / ".venv"
    return Layout(root=root.resolve(), home=home.resolve())
