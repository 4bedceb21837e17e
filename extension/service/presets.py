"""Presets: the engine's own, and the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dreambooth_core.config.catalogue import budget_of, entries, entry, names, recipe
from dreambooth_core.config.describe import flatten, nest, renamed
from dreambooth_core.config.loading import mark
from dreambooth_core.config.reading import Source, read_file, read_yaml
from dreambooth_core.disk import write_text
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.jobs import sanitise
from dreambooth_core.jobs.files import to_json
from dreambooth_core.options import TrainConfig

from ..host.base import Host
from .types import MemoryChoice, Preset, Values

GIB, MIB = 1024**3, 1024**2
ENDING = ".json"


class Presets:
    """All presets by name. The user's are JSON files that the command line takes too."""

    def __init__(self, root: Path, host: Host) -> None:
        self.root = root
        self.host = host

    def all(self) -> list[Preset]:
        """Recipes, then the user's own."""
        shipped = [Preset(one.name, "recipe", one.about) for one in entries()]
        own = sorted(self.host.folders().presets.glob(f"*{ENDING}"))
        return [*shipped, *(Preset(path.stem, "own") for path in own)]

    def file(self, name: str) -> Path:
        """Where a preset of the user's lies, by its name alone: no path is followed.

        Raises:
            UserError: there is none of that name.
        """
        path = self.host.folders().presets / f"{name}{ENDING}"
        if path.stem != name or sanitise(name) != name or not path.is_file():
            raise UserError(f"there is no preset named {name!r}")
        return path

    def is_own(self, name: str) -> bool:
        """Whether a preset is the user's.

        Raises:
            UserError: there is none of that name.
        """
        return bool(name) and not budget_of(name) and name not in names() and bool(self.file(name))

    def shipped(self, names: Sequence[str]) -> list[str]:
        """Those of the engine's own, in their order."""
        return [name for name in names if name and not self.is_own(name)]

    def values(self, name: str) -> Values:
        """What a preset sets, by dotted keys."""
        if size := budget_of(name):  # what was a memory preset
            return {"memory.budget": size}
        if name in names():
            found = read_yaml(entry(name).text, Source(name, Path.cwd(), TrainConfig))
        else:
            found = read_file(self.file(name), TrainConfig, {})
        values = flatten(found)
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
        if name in names():
            raise UserError(f"{name!r} is a preset of the engine and stays")
        self.file(name).unlink()

    def recipe(self, kind: str, method: str, family: str) -> str:
        """``object-lora-sd1``; empty where there is no such recipe."""
        return recipe(kind, _kind_of(method), family)

    def memory_choice(self) -> MemoryChoice:
        """The memory that a run may take: what is free, the host's model counted as free."""
        memory = self.host.memory()
        if memory is None:
            return MemoryChoice("", "no GPU was found: training runs on the processor")
        free, total = memory.free / GIB, memory.total / GIB
        facts = {"free_gib": round(free, 1), "total_gib": round(total, 1)}
        reason = f"{free:.1f} GiB of {total:.1f} GiB are free; the run is fitted into them"
        return MemoryChoice(f"{memory.free // MIB}MB", reason, **facts)


def _kind_of(method: str) -> str:
    """What the presets distinguish: full fine-tuning, and everything smaller."""
    return "full" if method == "full" else "lora"
