"""Settings nodes, made from the engine's own configuration: nothing is typed twice.

Every widget begins as "as the preset" and sets nothing; whatever else it says is what runs.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dreambooth_core.config.catalogue import BUDGETS, budget_of, entries
from dreambooth_core.config.describe import describe, flatten
from dreambooth_core.errors import UserError
from dreambooth_core.options import TrainConfig

from . import host
from .description import PREFIX, SETTINGS, Input, Node, Output, Result

NONE = "(none)"
OVERRIDE = re.compile(r"[A-Za-z_][\w.\[\]]*\s*=")
"""What may go to the engine's command line: never a flag."""
WHOLE = "auto"
MIB = 1024**2
PRECISION = "run.mixed_precision"
AS_PRESET, NOTHING, ON, OFF = "as the preset", "none", "on", "off"
"""Words in widgets. ``none`` is the number that may be empty, and is."""

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
    "method.placeholder_token",
    "method.initializer_token",
    "method.num_vectors",
    "optim.embedding_lr",
    "memory.budget",
}
"""What other nodes say, and what must be as the host needs it."""
SECTIONS = (
    "method",
    "optim",
    "objective",
    "data",
    "marks",
    "prior",
    "memory",
    "save",
    "base",
    "run",
)
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


PREVIOUS = Input(
    "settings", SETTINGS, "Settings", "Settings that these are laid over.", optional=True
)
OUTPUT = Output(SETTINGS, "SETTINGS", "For a training node, or for more settings.")


def leaves(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The fields of a described section and its subsections, in order."""
    for each in tree["children"]:
        if each["type"] == "section":
            yield from leaves(each)
        else:
            yield each


def first_key(said: dict[str, Any]) -> str:
    """A field's key by the name that it had at first."""
    first = [said["name"], *(old for old in said["aliases"] if "." not in old)][-1]
    return f"{said['key'].removesuffix(said['name'])}{first}"


def widget_name(said: dict[str, Any], section: str) -> str:
    """The input's name: the field's first, since saved graphs name it. None is called seed: the
    page would draw another after each run."""
    name = first_key(said).removeprefix(f"{section}.").replace(".", "_")
    return "random_seed" if name == "seed" else name


def widget(said: dict[str, Any], section: str) -> Input | None:
    """The input for a field; None for kinds that have no widget.

    Every widget can also leave its field to the preset. Numbers are texts: the page rounds what
    stands in a number's widget, and no number is a word.
    """
    kind, default, choices = said["type"], said["default"], tuple(said["choices"] or ())
    name, label, help_ = widget_name(said, section), said["label"], said["help"]
    if said["unit"]:
        help_ = f"{help_} In {said['unit']}."
    if kind in ("int", "float") and said["optional"]:
        help_ = f"{help_} {NOTHING}: empty."
    if default not in (None, "", [], {}):
        shown = (OFF, ON)[default] if kind == "bool" else shown_number(default)
        help_ = f"{help_} The engine's default: {shown}."
    if kind == "bool":
        return Input(name, "COMBO", label, help_, AS_PRESET, choices=(AS_PRESET, OFF, ON))
    if choices and kind == "str" and not said["open"]:
        return Input(name, "COMBO", label, help_, AS_PRESET, choices=(AS_PRESET, *choices))
    if kind in ("int", "float", "str"):
        return Input(name, "STRING", label, help_, AS_PRESET)
    several = {"list": "One on each line.", "dict": "One name=value on each line."}
    if kind == "dict" or (kind == "list" and said["item"]["type"] in ("str", "int", "float")):
        help_ = f"{help_} {several[kind]}"
        return Input(name, "STRING", label, help_, AS_PRESET, multiline=True)
    return None


def shown_number(value: Any) -> str:
    """A value as a person writes it: 1e-08, 16, 0.9995."""
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def value_of(said: dict[str, Any], given: Any, where: str) -> Any:
    """The configuration's value for what a widget holds.

    Args:
        said: the field, as the engine describes it.
        given: the widget's value; other nodes may link numbers.
        where: node and widget, for errors.

    Raises:
        UserError: it is no value of the field.
    """
    kind, text = said["type"], str(given).strip()
    if kind == "bool":
        return text.lower() in (ON, "true")
    if kind in ("int", "float"):
        return number_of(said, text, where)
    if kind == "str":
        return None if said["optional"] and not text else text
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if kind == "list" and said["item"]["type"] != "str":
        each = {**said, "type": said["item"]["type"], "optional": False}
        return [number_of(each, line, where) for line in lines]
    if kind == "list":
        return lines
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def number_of(said: dict[str, Any], text: str, where: str) -> int | float | None:
    """A number as a person wrote it. Raises ``UserError`` for what is none, or out of range."""
    if text.lower() == NOTHING and said["optional"]:
        return None
    low, high = said["minimum"], said["maximum"]
    do = f"Write a number from {low:g} to {high:g}, or {AS_PRESET!r}."
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"{text!r} is not a number", where=where, do=do) from None
    if not math.isfinite(value):
        raise UserError(f"{text} is not a number to train with", where=where, do=do)
    if said["type"] == "int":
        if not value.is_integer():
            raise UserError(f"{text} is not a whole number", where=where, do=do)
        value = int(text) if text.isdigit() else int(value)
    if not low <= value <= high:
        raise UserError(f"{text} is too {'small' if value < low else 'large'}", where=where, do=do)
    return value


def is_left(said: dict[str, Any], given: Any) -> bool:
    """Whether a widget leaves its field to the preset; an emptied number does."""
    text = str(given).strip()
    return text == AS_PRESET or (not text and said["type"] in ("int", "float"))


def places() -> Iterator[tuple[str, str, str]]:
    """Key, node and widget of every field that a section's node sets."""
    for name in SECTIONS:
        for said in leaves(_SECTIONS[name]):
            if said["key"] not in LEFT_OUT:
                yield said["key"], title_of(_SECTIONS[name]), said["label"]


def set_by(
    pairs: Sequence[tuple[dict[str, Any], Input]], given: Mapping[str, Any], title: str
) -> dict[str, Any]:
    """What the widgets of fields set, by the fields' keys; nothing for those left to the preset."""
    return {
        said["key"]: value_of(said, given[made.id], f"{title}, {made.label}")
        for said, made in pairs
        if not is_left(said, given[made.id])
    }


def title_of(tree: dict[str, Any]) -> str:
    """A section's node, as it is called."""
    return f"Settings: {tree['label']} (DreamBooth)"


def section_node(tree: dict[str, Any]) -> Node:
    """The node of one section of the configuration."""
    section = tree["name"]
    pairs = [
        (said, made)
        for said in leaves(tree)
        if said["key"] not in LEFT_OUT and (made := widget(said, section)) is not None
    ]

    title = title_of(tree)

    def run(node_id: str | None = None, settings: Settings | None = None, **given: Any) -> Result:
        values = set_by(pairs, given, title)
        shown = [f"{key} = {value}" for key, value in values.items()] or ["all as the preset"]
        return Result((Settings(values=values).over(settings),), shown)

    return Node(
        f"{PREFIX}Settings{section.title()}",
        title,
        f"{tree['help']} What says so is left to the preset.",
        (*(made for _, made in pairs), PREVIOUS),
        (OUTPUT,),
        run,
        group="Settings",
    )


def choose(
    preset: str,
    memory: str,
    steps: int,
    learning_rate: str,
    random_seed: int,
    overrides: str,
    settings: Settings | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Settings. Raises ``UserError`` for a line that is no ``key=value``."""
    values: dict[str, Any] = {"run.seed": random_seed}
    if steps > 0:
        values["run.steps"] = steps
    if not is_left(_RATE, learning_rate):
        where = f"{TITLE}, {_RATE['label']}"
        values["optim.learning_rate"] = value_of(_RATE, learning_rate, where)
    lines = [line.strip() for line in overrides.splitlines() if line.strip()]
    for line in lines:
        if not OVERRIDE.match(line):
            raise UserError(f"{line!r} sets nothing", where="overrides", do="Write key=value.")
    size = host.gpu_memory() if memory == WHOLE else 0
    if budget := budget_of(memory) or (f"{size // MIB}MB" if size else ""):
        values["memory.budget"] = budget
    presets = () if preset == NONE else (preset,)
    told = preset_lines(preset)
    known = settings.values if settings else {}
    if presets and PRECISION not in known and not host.has_gpu():
        values[PRECISION] = "no"
        told.append(f"{PRECISION} = no: there is no GPU, and bf16 is slower than fp32 without")
    made = Settings(presets, values, tuple(lines)).over(settings)
    return Result((made,), told)


def preset_lines(preset: str) -> list[str]:
    """What a preset sets, with what its author says of it."""
    entry = next((each for each in entries() if each.name == preset), None)
    if entry is None:
        return ["no preset: the engine's defaults"]
    lines = [f"{preset}: {entry.about}"]
    with contextlib.suppress(ImportError):  # the host's own
        import yaml

        told = flatten(yaml.safe_load(entry.text))
        lines += [f"{key} = {value}" for key, value in told.items() if key not in SAID_ELSEWHERE]
    return lines


def _main() -> Node:
    recipes = [entry.name for entry in entries()]
    said = {each["key"]: each for each in leaves(describe(TrainConfig))}
    seed = said["run.seed"]
    return Node(
        f"{PREFIX}Settings",
        TITLE,
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
            Input("learning_rate", "STRING", _RATE["label"], _RATE["help"], AS_PRESET),
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
            PREVIOUS,
        ),
        (OUTPUT,),
        choose,
    )


_SECTIONS = {
    tree["name"]: tree for tree in describe(TrainConfig)["children"] if tree["type"] == "section"
}


def field_of(key: str) -> dict[str, Any]:
    """The engine's field of a dotted key, as it describes itself."""
    tree = _SECTIONS[key.partition(".")[0]]
    return next(said for said in leaves(tree) if said["key"] == key)


_RATE = field_of("optim.learning_rate")
TITLE = "Settings (DreamBooth)"
SAID_ELSEWHERE = {f"run.presets.{entry.name}" for entry in entries()}
FIRST = {said["key"]: first_key(said) for tree in _SECTIONS.values() for said in leaves(tree)}
"""Keys by their first names, under which earlier runs are found again."""
MAIN = _main()
NODES = (MAIN, *(section_node(_SECTIONS[name]) for name in SECTIONS))
