"""The presets that come with the engine, and what their names mean. Standard library only.

A recipe is named for what is learned, the method and the family: ``person-lora-sdxl``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SHIPPED = Path(__file__).parent / "presets"

SUBJECTS = ("object", "person", "style")
METHODS = ("lora", "full")
FAMILIES = ("sd1", "sd2", "sdxl")
FLOW = "flow"
"""In place of a family: the rectified-flow models, which are trained alike."""
BUDGETS = ("6GB", "8GB", "10GB", "12GB", "16GB", "24GB", "32GB")
"""Memory of common GPUs, as ``memory.budget`` takes it."""

_TIER = re.compile(r"([1-9][0-9]{0,4})gb(-\w+-\w+)?", re.IGNORECASE)
_VERSION = re.compile(r"^\s*presets: \{\S+: \"?([\w.]+)\"?\}", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One preset."""

    name: str
    path: Path
    version: str
    about: str
    """What its comment begins with."""


def entries(folder: Path = SHIPPED) -> list[Entry]:
    """All presets."""
    return [read_entry(path) for path in sorted(folder.glob("*.yaml"))]


def read_entry(path: Path) -> Entry:
    """A preset's description, from its text."""
    text = path.read_text(encoding="utf-8")
    version = _VERSION.search(text)
    about = text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""
    return Entry(path.stem, path, version.group(1) if version else "", about)


def recipe(subject: str, method: str, family: str) -> str:
    """The preset for a subject, a method and a family (``object-lora-sd1``); empty without one."""
    place = family if family in FAMILIES else FLOW
    name = f"{subject}-{method}-{place}"
    return name if family and (SHIPPED / f"{name}.yaml").is_file() else ""


def budget_of(preset: str) -> str:
    """``8GB`` for what was a memory preset, ``8gb`` or ``8gb-lora-sdxl``; else empty."""
    match = _TIER.fullmatch(preset.strip())
    return f"{match[1]}GB" if match else ""
