"""A configuration that is being made out of flags, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.compat.dialects import Dialect
from dreambooth_core.compat.machine import Machine
from dreambooth_core.data.concept_options import ConceptOptions
from dreambooth_core.options import TrainConfig

CONCEPT = "concepts[0]."


@dataclass
class Draft:
    """What the actions of flags work on, and what a command line means in the end."""

    dialect: Dialect
    telling: list[str]
    """The flags by which the dialect was told."""
    values: dict[str, Any] = field(repr=False)
    """The value of every flag: what was given, and the dialect's defaults."""
    given: frozenset[str]
    """The flags that were given."""
    machine: Machine
    config: TrainConfig = field(default_factory=TrainConfig)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    """Environment variables of the run, such as a token: for this process alone, written
    nowhere."""
    folder: Path = Path()
    """The run's, when all is known."""

    @property
    def headline(self) -> str:
        """Which dialect it is, and why."""
        why = f" (by {', '.join('--' + flag for flag in self.telling)})" if self.telling else ""
        return f"{self.dialect.script}: {self.dialect.whose} dialect{why}, with its defaults"

    def set(self, key: str, value: Any) -> None:
        """Sets a key of the configuration; ``concepts[0]`` is made when first needed."""
        holder: Any = self.config
        if key.startswith(CONCEPT):
            if not self.config.concepts:
                self.config.concepts.append(ConceptOptions())
            holder, key = self.config.concepts[0], key.removeprefix(CONCEPT)
        *sections, last = key.split(".")
        for section in sections:
            holder = getattr(holder, section)
        getattr(holder, last)
        setattr(holder, last, value)

    def note(self, flag: str, text: str) -> None:
        """Says something about a flag, if it was given and not merely a default."""
        if flag in self.given:
            self.notes.append(f"--{flag}: {text}")

    def warn(self, flag: str, text: str) -> None:
        """Says that something else than what a flag asks for is done."""
        self.warnings.append(f"--{flag}: {text}")
