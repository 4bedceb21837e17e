"""The presets that come with the engine, and what their names mean. Standard library only.

A recipe is named for what is learned, the method and the family: ``person-lora-sdxl``. A memory
preset is named for the GPU, and again for method and family: ``8gb-lora-sdxl``; beside a recipe,
``8gb`` is enough.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import UserError

SHIPPED = Path(__file__).parent / "presets"
MEMORY = "memory"
"""The folder of the memory presets, inside that of the recipes."""

SUBJECTS = ("object", "person", "style")
METHODS = ("lora", "full")
FAMILIES = ("sd1", "sd2", "sdxl")
TIERS = (6, 8, 10, 12, 16, 24, 32)
"""Memory of a GPU in GiB."""

_RECIPE = re.compile(rf"^\w+-({'|'.join(METHODS)})-({'|'.join(FAMILIES)})$")
_TIER = re.compile(r"^([0-9]{1,4})\s*gb(?:-(\w+)-(\w+))?$", re.IGNORECASE)
_PEAK = re.compile(r"Estimated peak: ([\d.]+) GiB")
_VERSION = re.compile(r"^\s*presets: \{\S+: \"?([\w.]+)\"?\}", re.MULTILINE)

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Entry:
    """One preset."""

    name: str
    path: Path
    version: str
    about: str
    """What its comment begins with."""
    peak: float | None
    """Estimated peak in GiB; only memory presets say it."""


def entries(folder: Path = SHIPPED) -> list[Entry]:
    """All presets, recipes first, then memory from the smallest GPU up."""
    recipes = sorted(folder.glob("*.yaml"))
    memory = [folder / MEMORY / f"{name}.yaml" for name in memory_names(folder)]
    return [read_entry(path) for path in [*recipes, *memory]]


def read_entry(path: Path) -> Entry:
    """A preset's description, from its text."""
    text = path.read_text(encoding="utf-8")
    version, peak = _VERSION.search(text), _PEAK.search(text)
    about = text.splitlines()[0].lstrip("# ") if text.startswith("#") else ""
    return Entry(
        name=path.stem,
        path=path,
        version=version.group(1) if version else "",
        about=about,
        peak=float(peak.group(1)) if peak else None,
    )


def memory_names(folder: Path = SHIPPED) -> list[str]:
    """The memory presets, the smallest GPU first."""
    names = [path.stem for path in (folder / MEMORY).glob("*.yaml")]
    return sorted(names, key=lambda name: (int(name.partition("gb")[0]), name))


def whole_names(presets: Iterable[Name], folder: Path = SHIPPED) -> list[Name]:
    """The presets by whole names, in the order in which they are laid over each other.

    Raises:
        UserError: a memory preset that says neither method nor family, and no recipe does; or
            a pair that no settings make fit: names the smallest that does.
    """
    given = list(presets)
    recipes = [name for name in given if not _TIER.match(str(name))]
    memory = [str(name) for name in given if _TIER.match(str(name))]
    kinds = [match.groups() for name in recipes if (match := _RECIPE.match(str(name)))]
    kind = kinds[-1] if kinds else None
    return [*recipes, *(_memory_name(name, kind, folder) for name in memory)]


def _memory_name(name: str, kind: tuple[str, ...] | None, folder: Path) -> str:
    match = _TIER.match(name)
    assert match is not None
    tier = int(match.group(1))
    method, family = match.group(2), match.group(3)
    if method is None:
        if kind is None:
            raise UserError(
                f"{name!r} depends on the method and the family of the base",
                where="preset",
                do=f"Say both, as in {tier}gb-lora-sd1, or add a recipe such as object-lora-sd1.",
            )
        method, family = kind
    whole = f"{tier}gb-{method}-{family}"
    if (folder / MEMORY / f"{whole}.yaml").is_file():
        return whole
    ending = f"gb-{method}-{family}"
    sizes = [int(n.removesuffix(ending)) for n in memory_names(folder) if n.endswith(ending)]
    if not sizes:
        raise UserError(
            f"unknown preset {name!r}",
            where="preset",
            do=f"Memory presets are for {', '.join(METHODS)} and {', '.join(FAMILIES)}.",
        )
    if tier < min(sizes):
        what = f"{'full fine-tuning' if method == 'full' else 'an adapter'} of {family}"
        raise UserError(
            f"{what} does not fit into {tier} GB",
            where="preset",
            do=f"The smallest that fits is {min(sizes)}gb-{method}-{family}.",
        )
    below = max((size for size in sizes if size <= tier), default=min(sizes))
    raise UserError(
        f"there is no preset for {tier} GB", where="preset", do=f"Use {below}gb-{method}-{family}."
    )
