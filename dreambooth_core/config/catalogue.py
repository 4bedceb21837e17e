"""The presets that come with the engine, and what their names mean. Standard library only.

A recipe is named for what is learned, the method and the family: ``person-lora-sdxl``. One file
holds what is learned how; what differs for a family lies with the families, and goes over it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUBJECTS = ("object", "person", "style")
METHODS = ("lora", "full")
FAMILIES = ("sd1", "sd2", "sdxl")
FLOW = "flow"
"""In place of a family: the rectified-flow models, which are trained alike, and not whole."""
VERSION = "1"
"""Raised when values of presets change."""
BUDGETS = ("6GB", "8GB", "10GB", "12GB", "16GB", "24GB", "32GB")
"""Memory of common GPUs, as ``memory.budget`` takes it."""

_KINDS = Path(__file__).parent / "presets"
_DIFFERENCES = Path(__file__).parents[1] / "families" / "presets"
_TIER = re.compile(r"([1-9][0-9]{0,4})gb(-\w+-\w+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """One preset."""

    name: str
    about: str
    text: str
    """YAML, with a reason above each value."""
    version: str = VERSION


def names() -> list[str]:
    """The names of all presets."""
    found = [f"{s}-{m}-{f}" for s in SUBJECTS for m in METHODS for f in FAMILIES]
    return sorted([*found, *(f"{subject}-lora-{FLOW}" for subject in SUBJECTS)])


def entries() -> list[Entry]:
    """All presets."""
    return [entry(name) for name in names()]


def entry(name: str) -> Entry:
    """A preset by one of :func:`names`."""
    subject, method, family = name.split("-")
    files = [_KINDS / f"{subject}-{method}.yaml", _DIFFERENCES / f"{family}.yaml"]
    files += [_DIFFERENCES / f"{family}-{subject}.yaml"]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    heading, *rest = texts[0].partition("\n\n")[0].replace("# ", "").splitlines()
    about = heading.format(texts[1].splitlines()[0].removeprefix("# "))
    head = "\n".join(f"# {line}" for line in (about, *rest))
    origin = f'run:\n  presets: {{{name}: "{VERSION}"}}\n'
    return Entry(name, about, f"{head}\n\n{_over_each_other([origin, *texts])}")


def recipe(subject: str, method: str, family: str) -> str:
    """The preset for a subject, a method and a family (``object-lora-sd1``); empty without one."""
    name = f"{subject}-{method}-{family if family in FAMILIES else FLOW}"
    return name if family and name in names() else ""


def budget_of(preset: str) -> str:
    """``8GB`` for what was a memory preset, ``8gb`` or ``8gb-lora-sdxl``; else empty."""
    match = _TIER.fullmatch(preset.strip())
    return f"{match[1]}GB" if match else ""


def _over_each_other(texts: Iterable[str]) -> str:
    """Texts of YAML sections as one: a key has the value, and the reasons, of the last."""
    tree: dict[str, Any] = {}
    for text in texts:
        path: list[dict[str, Any]] = [tree]
        reasons: list[str] = []
        for line in text.splitlines():
            if not line.strip():
                reasons.clear()  # it ends the heading
            elif line.lstrip().startswith("#"):
                reasons.append(line)
            else:
                depth = (len(line) - len(line.lstrip())) // 2
                known = path[depth].setdefault(line.split(":")[0], {"below": {}})
                known["lines"] = [*reasons, line]
                path[depth + 1 :] = [known["below"]]
                reasons.clear()
    return "".join(f"{line}\n" for line in _lines(tree))


def _lines(tree: dict[str, Any]) -> list[str]:
    return [line for each in tree.values() for line in (*each["lines"], *_lines(each["below"]))]
