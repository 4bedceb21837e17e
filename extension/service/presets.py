"""Presets: the engine's own, and the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.config.catalogue import (
    MEMORY,
    SHIPPED,
    entries,
    memory_names,
    read_entry,
)
from dreambooth_core.config.describe import flatten, nest, renamed
from dreambooth_core.config.marking import mark
from dreambooth_core.config.reading import read_file
from dreambooth_core.disk import write_text
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.jobs import sanitise
from dreambooth_core.jobs.files import to_json
from dreambooth_core.trainer.config import TrainConfig

from ..host.base import Host
from .types import MemoryChoice, Preset, Values

GIB = 1024**3
ENDING = ".json"


class Presets:
    """All presets by name. The user's are JSON files that the command line takes too."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root = root
        self.host = host

    def all(self) -> list[Preset]:
        """Recipes, memory presets from the smallest GPU up, the user's own."""
        memory = set(memory_names())
        shipped = [
            Preset(one.name, "memory" if one.name in memory else "recipe", one.about, one.peak)
            for one in entries()
        ]
        own = sorted(self.host.folders().presets.glob(f"*{ENDING}"))
        return [*shipped, *(Preset(path.stem, "own") for path in own)]

    def file(self, name: str) -> Path:
        """Where a preset lies, by its name alone: no path is followed.

        Raises:
            UserError: there is none of that name.
        """
        for path in (
            self.host.folders().presets / f"{name}{ENDING}",
            SHIPPED / f"{name}.yaml",
            SHIPPED / MEMORY / f"{name}.yaml",
        ):
            if path.stem == name and sanitise(name) == name and path.is_file():
                return path
        raise UserError(f"there is no preset named {name!r}")

    def is_own(self, name: str) -> bool:
        """Whether a preset is the user's."""
        return bool(name) and self.file(name).suffix == ENDING

    def shipped(self, names: Sequence[str]) -> list[str]:
        """Those of the engine's own, in their order."""
        return [name for name in names if name and not self.is_own(name)]

    def values(self, name: str) -> Values:
        """What a preset sets, by dotted keys."""
        values = flatten(read_file(self.file(name), TrainConfig, {}))
        return {key: v for key, v in values.items() if not key.startswith("run.presets")}

    def save(self, name: str, values: Values) -> Preset:
        """Writes a preset.

        Raises:
            UserError: the name is one of ours, a value is wrong, or it cannot be written.
        """
        clean = sanitise(name)
        if not name.strip():
            raise UserError("the preset has no name", do="Give it one.")
        if any(one.name == clean and one.kind != "own" for one in self.all()):
            raise UserError(f"{clean!r} is a preset of the engine", do="Choose another name.")
        values = renamed(TrainConfig, values)
        wrong = mark(TrainConfig, values)
        if wrong:
            raise UserError(next(iter(wrong.values())))
        folder = self.host.folders().presets
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{clean}{ENDING}", to_json(nest(values), indent=2) + "\n")
        except (OSError, SaveFailed) as error:
            raise UserError(f"the preset could not be saved: {error}", where=folder) from error
        return Preset(clean, "own")

    def delete(self, name: str) -> None:
        """Removes a preset of the user's."""
        path = self.file(name)
        if path.suffix != ENDING:
            raise UserError(f"{name!r} is a preset of the engine and stays")
        path.unlink()

    def recipe(self, kind: str, method: str, family: str) -> str:
        """``object-lora-sd1``; empty where there is no such recipe."""
        name = f"{kind}-{_kind_of(method)}-{family}"
        return name if (SHIPPED / f"{name}.yaml").is_file() else ""

    def memory_choice(self, family: str, method: str) -> MemoryChoice:
        """The largest memory preset (the quickest settings) whose peak fits what is free."""
        memory = self.host.memory()
        if memory is None:
            return MemoryChoice("", "no GPU was found: training runs on the processor")
        free, total = memory.free / GIB, memory.total / GIB
        ending = f"-{_kind_of(method)}-{family}"
        names = [name for name in memory_names() if name.endswith(ending)]
        facts = {"free_gib": round(free, 1), "total_gib": round(total, 1)}
        fitting = [name for name in names if (self._peak(name) or 0.0) <= free]
        if fitting:
            name = fitting[-1]
            reason = f"needs about {self._peak(name):.1f} GiB of {free:.1f} GiB that are free"
            return MemoryChoice(name, reason, **facts)
        if not names:
            return MemoryChoice("", f"there is no memory preset for {family} {method}", **facts)
        least = self._peak(names[0]) or 0.0
        reason = f"{free:.1f} GiB are free, and the smallest preset needs about {least:.1f} GiB"
        return MemoryChoice("", reason, **facts)

    def _peak(self, name: str) -> float | None:
        return read_entry(SHIPPED / MEMORY / f"{name}.yaml").peak


def _kind_of(method: str) -> str:
    """What the presets distinguish: full fine-tuning, and everything smaller."""
    return "full" if method == "full" else "lora"
