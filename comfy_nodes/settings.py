"""Settings nodes, made from the engine's own configuration: nothing is typed twice.

A value that stands at its default is not set, so that a preset's value for it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from dreambooth_core.config.catalogue import BUDGETS, budget_of, entries
from dreambooth_core.config.describe import describe
from dreambooth_core.errors import UserError
from dreambooth_core.trainer.config import TrainConfig

from . import host
from .description import PREFIX, SETTINGS, Input, Node, Output, Result

NONE = "(none)"
OVERRIDE = re.compile(r"[A-Za-z_][\w.\[\]]*\s*=")
"""What may go to the engine's command line: never a flag."""
WHOLE = "auto"
MIB = 1024**2
EMPTY = -1
"""Stands for "empty" in numbers that may be empty."""
LARGEST = {"INT": 2**53 - 1, "FLOAT": 1e9}

LEFT_OUT = {
    "base.model",
    "run.name",
    "run.output",
    "run.resume",
    "run.presets",
    "run.steps",
    "run.epochs",
    "run.seed",
    "data.captions",
    "save.layout",
    "save.arrangement",
    "save.also_kohya",
    "method.kind",
    "memory.budget",
}
"""What other nodes say, or what must be as the host needs it."""
SECTIONS = ("method", "optim", "objective", "data", "prior", "memory", "save", "base", "run")
"""Sections with a node of their own. Validation is the training nodes', publishing nobody's."""


@dataclass(frozen=True)
class Settings:
    """Presets and values by their dotted keys."""

    presets: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    texts: tuple[str, ...] = ()
    """``key=value`` as a person wrote it; the engine reads them."""

    def over(self, below: Settings | None) -> Settings:
        """These settings laid over others."""
        if below is None:
            return self
        return Settings(
            (*below.presets, *self.presets),
            {**below.values, **self.values},
            (*below.texts, *self.texts),
        )


_PREVIOUS = Input(
    "settings", SETTINGS, "Settings", "Settings that these are laid over.", optional=True
)
_OUTPUT = Output(SETTINGS, "SETTINGS", "For a training node, or for more settings.")


def leaves(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields of a described section and its subsections, in order."""
    for each in tree["children"]:
        if each["type"] == "section":
            yield from leaves(each)
        else:
            yield each


def first_key(said: dict[str, Any]) -> str:
    """A field's key by the name that it had at first."""
    first = [said["name"], *said["aliases"]][-1]
    return f"{said['key'].removesuffix(said['name'])}{first}"


def widget_name(said: dict[str, Any], section: str) -> str:
    """The input's name: the field's first, since saved graphs name it. None is called seed: the
    page would draw another after each run."""
    name = first_key(said).removeprefix(f"{section}.").replace(".", "_")
    return "random_seed" if name == "seed" else name


def widget(said: dict[str, Any], section: str) -> Input | None:
    """The input for a field; None for kinds that have no widget."""
    kind, default = said["type"], said["default"]
    name = widget_name(said, section)
    help_, low, high, step = said["help"], said["minimum"], said["maximum"], None
    if said["unit"]:
        help_ = f"{help_} In {said['unit']}."
    if said["choices"] and kind == "str" and not said["open"]:
        return Input(name, "COMBO", said["label"], help_, default, choices=tuple(said["choices"]))
    if kind in ("int", "float"):
        widget_type = "INT" if kind == "int" else "FLOAT"
        if said["optional"]:
            default = EMPTY if default is None else default
            low = EMPTY
            help_ = f"{help_} {EMPTY}: empty."
        low = (
            (0 if low is None else low)
            if kind == "int"
            else (-LARGEST["FLOAT"] if low is None else low)
        )
        step = 1 if kind == "int" else 1e-7 if "learning_rate" in name else 0.001
        high = LARGEST[widget_type] if high is None else high
        return Input(name, widget_type, said["label"], help_, default, low, high, step)
    if kind == "bool":
        return Input(name, "BOOLEAN", said["label"], help_, default)
    if kind == "str":
        return Input(name, "STRING", said["label"], help_, default or "")
    if kind == "list" and said["item"]["type"] == "str":
        help_ = f"{help_} One on each line."
        return Input(name, "STRING", said["label"], help_, "", multiline=True)
    if kind == "dict":
        help_ = f"{help_} One name=value on each line."
        return Input(name, "STRING", said["label"], help_, "", multiline=True)
    return None


def value_of(said: dict[str, Any], given: Any) -> Any:
    """The configuration's value for what a widget holds."""
    if said["type"] in ("int", "float") and said["optional"] and given == EMPTY:
        return None
    if said["type"] == "str" and said["optional"] and given == "":
        return None
    if said["type"] in ("list", "dict"):
        lines = [line.strip() for line in str(given).splitlines() if line.strip()]
        if said["type"] == "list":
            return lines
        pairs = (line.partition("=") for line in lines)
        return {name.strip(): value.strip() for name, _, value in pairs}
    return given


def section_node(tree: dict[str, Any]) -> Node:
    """The node of one section of the configuration."""
    section = tree["name"]
    pairs = [
        (said, made)
        for said in leaves(tree)
        if said["key"] not in LEFT_OUT and (made := widget(said, section)) is not None
    ]

    def run(node_id: str | None = None, settings: Settings | None = None, **given: Any) -> Result:
        values = {
            said["key"]: value
            for said, made in pairs
            if (value := value_of(said, given[made.id])) != said["default"]
        }
        shown = [f"{key} = {value}" for key, value in values.items()] or ["all as they were"]
        return Result((Settings(values=values).over(settings),), shown)

    return Node(
        f"{PREFIX}Settings{section.title()}",
        f"Settings: {tree['label']} (DreamBooth)",
        f"{tree['help']} What stands at its default here is left to the preset.",
        (*(made for _, made in pairs), _PREVIOUS),
        (_OUTPUT,),
        run,
        group="Settings",
    )


def choose(
    preset: str,
    memory: str,
    steps: int,
    learning_rate: float,
    random_seed: int,
    overrides: str,
    settings: Settings | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Settings. Raises ``UserError`` for a line that is no ``key=value``."""
    values: dict[str, Any] = {"run.seed": random_seed}
    if steps > 0:
        values["run.steps"] = steps
    if learning_rate > 0:
        values["optim.learning_rate"] = learning_rate
    lines = [line.strip() for line in overrides.splitlines() if line.strip()]
    for line in lines:
        if not OVERRIDE.match(line):
            raise UserError(f"{line!r} sets nothing", where="overrides", do="Write key=value.")
    size = host.gpu_memory() if memory == WHOLE else 0
    if budget := budget_of(memory) or (f"{size // MIB}MB" if size else ""):
        values["memory.budget"] = budget
    presets = () if preset == NONE else (preset,)
    return Result((Settings(presets, values, tuple(lines)).over(settings),))


def _main() -> Node:
    recipes = [entry.name for entry in entries()]
    said = {each["key"]: each for each in leaves(describe(TrainConfig))}
    seed, rate = said["run.seed"], said["optim.learning_rate"]
    return Node(
        f"{PREFIX}Settings",
        "Settings (DreamBooth)",
        "How to train: a preset, and what should differ from it. More of the engine's settings are "
        "in the nodes of the submenu; they chain.",
        (
            Input(
                "preset",
                "COMBO",
                "Preset",
                "What is learned, by which method, on which family of base models. (none): the "
                "engine's defaults.",
                "object-lora-sd1",
                choices=(NONE, *recipes),
            ),
            Input(
                "memory",
                "COMBO",
                "Memory budget",
                "The run is fitted into this much GPU memory by the settings that cost least. "
                "auto: the whole GPU's. (none): nothing is changed.",
                WHOLE,
                choices=(NONE, WHOLE, *(size.lower() for size in BUDGETS)),
            ),
            Input(
                "steps",
                "INT",
                said["run.steps"]["label"],
                "Optimizer steps. 0: as the preset says. With more steps than before, an earlier "
                "run with these settings is resumed.",
                0,
                0,
                1_000_000,
            ),
            Input(
                "learning_rate",
                "FLOAT",
                rate["label"],
                f"{rate['help']} 0: as the preset says.",
                0.0,
                0.0,
                10.0,
                1e-7,
            ),
            Input("random_seed", "INT", seed["label"], seed["help"], 0, 0, 2**53 - 1),
            Input(
                "overrides",
                "STRING",
                "Overrides",
                "Any other setting of the engine as key=value, one on each line, for example "
                "method.rank=8.",
                "",
                multiline=True,
            ),
            _PREVIOUS,
        ),
        (_OUTPUT,),
        choose,
    )


_SECTIONS = {
    tree["name"]: tree for tree in describe(TrainConfig)["children"] if tree["type"] == "section"
}
FIRST = {said["key"]: first_key(said) for tree in _SECTIONS.values() for said in leaves(tree)}
"""Keys by their first names, under which earlier runs are found again."""
MAIN = _main()
NODES = (MAIN, *(section_node(_SECTIONS[name]) for name in SECTIONS))
