"""Where the environment is and what lies where in it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dreambooth_core.disk import write_json

MARKER = "dreambooth-env.json"
"""The file that says that a folder is ours, and in what state. Written last when ready."""


@dataclass
class Marker:
    """What is known of an environment. ``whole`` turns true as the last act of a build."""

    whole: bool
    kind: str
    """``venv`` or ``target`` (see Layout)."""
    base: str
    """The Python that it was made with; an environment does not outlive it."""
    home: str
    """Where it was made: an environment that was moved does not work."""
    python: str
    """``3.11``: the version that its packages are for."""
    packages: str = ""
    """Fingerprint of the lock and of the choice of torch."""
    project: str = ""
    """Fingerprint of pyproject.toml and of the clone's place, for the ``dreambooth`` command."""
    torch: str = ""
    """The name of torch's build (``cpu``, ``cu130`` …)."""
    asked: str = "auto"
    """What the user asked for as torch's build."""
    unverified: list[str] = field(default_factory=list)
    """``SHA-256  file name`` of what no published hash could be had for."""
    added: dict[str, str] = field(default_factory=dict)
    """Fingerprints of what was added later: ``test``, ``xformers``."""

    @property
    def version(self) -> tuple[int, int]:
        """Of Python, in numbers."""
        major, _, minor = self.python.partition(".")
        return int(major), int(minor)


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

    def known(self) -> Marker | None:
        """What the marker says; None where there is none or it cannot be understood."""
        try:
            return Marker(**json.loads(self.marker.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def note(self, marker: Marker) -> None:
        """Writes the marker in one go: a reader sees the old or the new, never half of one."""
        write_json(self.marker, asdict(marker))

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
            known = self.known()
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
