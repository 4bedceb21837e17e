"""The file in an environment that says that it is ours, what it holds, and whether it is whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dreambooth_core.disk import write_json


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


def read(path: Path) -> Marker | None:
    """What an environment's marker says; None where there is none or it cannot be understood."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return Marker(**data)
    except (OSError, ValueError, TypeError):
        return None


def write(path: Path, marker: Marker) -> None:
    """Writes the marker in one go: a reader sees the old or the new, never half of one."""
    write_json(path, asdict(marker))
