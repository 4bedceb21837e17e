"""What a command takes, as a dataclass: read from a command line, or from a request.

A command's module has a dataclass ``Options``, whose fields are made by :func:`argument`, and
``run(options)``. Its parser, the WebUI's forms and API, and what nodes ask for come from it.
Standard library only, and so are the modules of commands at import.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dreambooth_core.config.fields import FieldInfo, described
from dreambooth_core.config.loading import check_value
from dreambooth_core.config.shapes import Member, Shape, members
from dreambooth_core.config.suggest import advice
from dreambooth_core.errors import UserError, escaped
from dreambooth_core.jobs.requests import WeightedFile, parse_weighted

READ = ("model", "adapter", "any", "yaml")
"""Kinds of paths that are read: a base or checkpoint, an adapter, either, a model's YAML."""

WRITTEN = ("model result", "adapter result", "result")
"""Kinds of paths that are written: a model, an adapter, or what was read, of either kind."""

OWN = ("config file", "run folder")
"""Kinds of paths that no request from outside names."""

T = TypeVar("T")


@dataclass(frozen=True)
class Words:
    """How a field is said on a command line."""

    flags: tuple[str, ...]
    """None: it is positional."""
    metavar: str | None = None
    group: str = ""
    """A heading in the help, and ``/`` before the name of fields that exclude each other."""
    repeated: bool = False
    """Of a list: the flag is given again for each; else the values follow one flag."""
    hidden: bool = False
    rest: bool = False
    """Of a positional list: it takes all that follows, flags too."""


def argument(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    label: str = "",
    kind: str = "",
    choices: Sequence[str] = (),
    between: tuple[float | None, float | None] = (None, None),
    factory: Callable[[], Any] | None = None,
    positional: bool = False,
    flags: Sequence[str] = ("--",),
    **words: Any,
) -> Any:
    """A field of a command's options.

    Args:
        kind: what a path is: one of ``READ``, ``WRITTEN`` or ``OWN``.
        between: the least and the largest number, or of each in a list.
        flags: by default ``--`` and the field's name.
        words: what else there is in :class:`Words`.
    """
    info = FieldInfo(label, help, *between, choices=tuple(choices) or None, path=kind)
    spelled = () if positional else tuple(flags)
    return described(info, default, factory, words=Words(spelled, **words))


@dataclass(frozen=True)
class Argument(Member):
    """A field, as forms and interfaces see it. Its info's ``path`` is a kind, also of each weighted
    adapter."""

    @property
    def words(self) -> Words:
        """How it is said on a command line."""
        found: Words = self.field.metadata["words"]
        return found

    @property
    def type(self) -> str:
        """``str``, ``int``, ``float``, ``bool``, ``choice``, ``path``, ``weighted`` (adapters, each
        with a weight) or ``list`` (of texts, or of numbers)."""
        if self.shape.item is not None and self.shape.item.schema is WeightedFile:
            return "weighted"
        return "choice" if self.info.choices else self.shape.kind

    @property
    def numbers(self) -> bool:
        """Whether a list holds numbers."""
        return self.shape.item is not None and self.shape.item.kind in ("int", "float")


def arguments(schema: type) -> list[Argument]:
    """The fields in order: the class's own before those that it shares with others."""
    found = members(schema)
    order = [name for owner in schema.__mro__ for name in inspect.get_annotations(owner)]
    return [Argument(**vars(found[name])) for name in dict.fromkeys(order) if name in found]


# --- from a command line --------------------------------------------------------------------------
def add_options(parser: argparse.ArgumentParser, schema: type) -> None:
    """Adds a parser's arguments for all fields."""
    groups: dict[str, Any] = {"": parser}
    for each in arguments(schema):
        names = [f"--{each.name}" if flag == "--" else flag for flag in each.words.flags]
        given: dict[str, Any] = {"help": argparse.SUPPRESS if each.words.hidden else each.info.help}
        if each.words.flags:
            given |= {"dest": each.name, "required": each.required}
        if each.type == "bool":
            given["action"] = "store_true"
        else:
            given |= {"metavar": each.words.metavar, "default": each.default}
            given["type"] = {
                "int": int,
                "float": _finite,
                "path": Path,
                "list": _finite if each.numbers else str,
            }.get(each.type, str)
        if each.info.choices:
            given["choices"] = each.info.choices
        if each.type in ("list", "weighted"):
            if each.words.rest:
                given["nargs"] = argparse.REMAINDER
            elif each.words.repeated:
                given["action"] = "append"
                given["default"] = list(each.default)
            else:
                given["nargs"] = "+" if each.words.flags or each.required else "*"
        elif not each.words.flags and not each.required:
            given["nargs"] = "?"
        _group(parser, groups, each.words.group).add_argument(*(names or [each.name]), **given)


def _group(parser: argparse.ArgumentParser, groups: dict[str, Any], name: str) -> Any:
    if name not in groups:
        heading, slash, _ = name.partition("/")
        if slash:
            groups[name] = _group(parser, groups, heading).add_mutually_exclusive_group()
        else:
            groups[name] = parser.add_argument_group(heading)
    return groups[name]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def from_arguments(schema: type[T], args: argparse.Namespace) -> T:
    """The options that a command line gave.

    Raises:
        UserError: an adapter's weight is none.
    """
    values: dict[str, Any] = {each.name: getattr(args, each.name) for each in arguments(schema)}
    for each in arguments(schema):
        if each.type == "weighted":
            values[each.name] = [parse_weighted(text) for text in values[each.name]]
    return _within_bounds(schema, values)


# --- from a request -------------------------------------------------------------------------------
def from_request(schema: type[T], values: Mapping[str, Any]) -> T:
    """The options that a JSON object says: every value of the very type that its field has.

    Raises:
        UserError: a key is unknown, or a value missing, of another type, or no finite number.
    """
    known = {each.name: each for each in arguments(schema)}
    for name in values:
        if name not in known:
            raise UserError(f"there is no option {name!r}", do=advice(str(name), known))
    for each in known.values():
        if each.required and values.get(each.name) in (None, []):
            raise UserError(f"{each.name.replace('_', ' ')} is missing", do="Fill it in.")
    read = {name: _read(known[name], known[name].shape, value) for name, value in values.items()}
    for group in {each.words.group for each in known.values() if "/" in each.words.group}:
        both = [e.name for e in known.values() if e.words.group == group and read.get(e.name)]
        if len(both) > 1:
            raise UserError(f"{both[0]} and {both[1]} exclude each other", do="Choose one.")
    return _within_bounds(schema, read)


def _within_bounds(schema: type[T], values: dict[str, Any]) -> T:
    """The options. Raises ``UserError`` for the first number that is out of its bounds."""
    described: type = schema
    for name, member in members(described).items():
        check_value(values.get(name), name, member.info, {})
    return schema(**values)


def _read(each: Argument, shape: Shape, value: Any) -> Any:
    """A value of a shape. Numbers may be whole where fractions are meant, nothing else differs."""
    if value is None and shape.optional:
        return None
    wanted: dict[str, Any] = {
        "int": int,
        "float": (int, float),
        "bool": bool,
        "list": list,
        "section": dict,
    }
    right = isinstance(value, wanted.get(shape.kind, str))
    if not right or (isinstance(value, bool) and shape.kind != "bool"):
        raise UserError(f"{each.name}: {_shown(value)} is not {KINDS.get(shape.kind, 'a text')}")
    if shape.kind == "float":
        return _number(each.name, value)
    if shape.kind == "path":
        return _path(each.name, value)
    if shape.kind == "list" and shape.item is not None:
        return [_read(each, shape.item, item) for item in value]
    if shape.kind == "section":
        return _weighted(each.name, value)
    if each.info.choices and value not in each.info.choices:
        what = f"{each.name}: {_shown(value)} is not a choice"
        raise UserError(what, do=f"Choose from {', '.join(each.info.choices)}.")
    return value


KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "section": "an adapter with a weight",
    "path": "a path",
}


def _weighted(name: str, value: dict[str, Any]) -> WeightedFile:
    if set(value) - {"file", "weight"} or not isinstance(value.get("file"), str):
        raise UserError(f'{name}: each is an object {{"file": …, "weight": …}}')
    weight = value.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise UserError(f"{name}: the weight {_shown(weight)} is not a number")
    return WeightedFile(_path(name, value["file"]), _number(name, weight))


def _number(name: str, value: float) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"{name}: {_shown(value)} is not a finite number")
    return number


def _path(name: str, text: str) -> Path:
    if not text or "\0" in text:
        raise UserError(f"{name}: {_shown(text)} is not a path")
    return Path(text)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# --- shared by commands ---------------------------------------------------------------------------
@dataclass(kw_only=True)
class Reporting:
    """A command that reports."""

    json: bool = argument(False, help="report as JSON")


def print_json(value: Any) -> None:
    """Prints a report for programs."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def tell(args: Reporting, report: Any, lines: Iterable[str]) -> None:
    """Prints a report, as JSON or as lines."""
    if args.json:
        print_json(report)
        return
    for line in lines:
        print(escaped(line))
