"""The tools' arguments, read off the command line's own parsers and written back as one."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

from .types import ToolOption

TOOLS = ("inspect", "merge", "bake", "extract", "convert", "resize")

OUTPUT = {
    "merge": "out",
    "bake": "out",
    "extract": "target",
    "convert": "target",
    "resize": "target",
}
"""The argument that names what is written."""

FILES = ("base", "tuned", "source", "file", "vae", "config_file", "original_config_file")
HIDDEN = ("help", "json", "debug")


@cache
def parser(tool: str) -> argparse.ArgumentParser:
    """The command line's parser of a tool."""
    made = argparse.ArgumentParser(prog=tool, add_help=False)
    importlib.import_module(f"dreambooth_core.commands.{tool}").add_arguments(made)
    return made


def options(tool: str) -> list[ToolOption]:
    """What a tool takes, in the command line's order."""
    return [_option(tool, action) for action in _actions(tool)]


def arguments(
    tool: str, values: Mapping[str, Any], *, file: Callable[[str], str], output: str
) -> list[str]:
    """The command line for values.

    Args:
        tool: its name.
        values: by the options' names; what is empty is left out.
        file: turns what names a file into its absolute path.
        output: the file to write, absolute too: neither can be taken for a flag.

    Raises:
        UserError: a value is missing, unknown, or of the wrong type.
    """
    known = {action.dest: action for action in _actions(tool)}
    for name in values:
        if name not in known:
            raise UserError(f"{tool} takes no {name!r}", do=f"It takes {', '.join(known)}.")
    placed: list[str] = []
    flagged: list[str] = []
    for name, action in known.items():
        value = output if name == OUTPUT.get(tool) else values.get(name)
        texts = _texts(_option(tool, action), value, file)
        if not texts:
            if action.required and value is not False:
                raise UserError(f"{tool}: {name.replace('_', ' ')} is missing", do="Fill it in.")
        elif not action.option_strings:
            placed += texts
        elif isinstance(action, argparse._StoreTrueAction):
            flagged.append(action.option_strings[0])
        elif isinstance(action, argparse._AppendAction):
            flagged += [f"{action.option_strings[0]}={text}" for text in texts]
        elif action.nargs in ("+", "*"):
            flagged += [action.option_strings[0], *texts]
        else:
            flagged.append(f"{action.option_strings[0]}={texts[0]}")
    return [tool, *placed, *flagged, "--json"]


def _actions(tool: str) -> list[argparse.Action]:
    return [action for action in parser(tool)._actions if action.dest not in HIDDEN]


def _option(tool: str, action: argparse.Action) -> ToolOption:
    return ToolOption(
        name=action.dest,
        label=action.dest.replace("_", " ").capitalize(),
        help=action.help or "",
        type=_type(tool, action),
        required=bool(action.required),
        default=action.default if not isinstance(action.default, Path) else str(action.default),
        choices=[str(choice) for choice in action.choices] if action.choices else None,
    )


def _type(tool: str, action: argparse.Action) -> str:
    if action.dest == OUTPUT.get(tool):
        return "output"
    if action.dest == "adapters":
        return "weighted"
    if action.choices:
        return "choice"
    if isinstance(action, argparse._StoreTrueAction):
        return "bool"
    if action.dest in FILES or action.type is Path:
        return "file"
    if isinstance(action, argparse._AppendAction) or action.nargs in ("+", "*"):
        return "list"
    kinds: dict[Any, str] = {int: "int", float: "float"}
    return kinds.get(action.type, "str")


def _texts(option: ToolOption, value: Any, file: Callable[[str], str]) -> list[str]:
    """A value as words of a command line; none for what is empty."""
    if value is None or value is False or value == "" or value == []:
        return []
    if option.type == "bool":
        return ["yes"]
    if option.type == "output":
        return [str(value)]
    if option.type == "file":
        return [file(str(value))]
    if option.type == "weighted":
        return [_weighted(item, file) for item in _listed(value)]
    if option.type == "list":
        return [str(item) for item in _listed(value)]
    if option.type == "choice" and str(value) not in (option.choices or []):
        do = f"Choose from {', '.join(option.choices or [])}."
        raise UserError(f"{option.name}: {value!r} is not a choice", do=do)
    if option.type in ("int", "float"):
        return [_number(option, value)]
    return [str(value)]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _weighted(item: Any, file: Callable[[str], str]) -> str:
    """``FILE:WEIGHT`` of a text, or of ``{"file": …, "weight": …}``, or of a pair."""
    from dreambooth_core.commands.weighted import parse_weighted

    if isinstance(item, Mapping):
        name, weight = str(item.get("file", "")), item.get("weight", 1.0)
    elif isinstance(item, (list, tuple)) and len(item) == 2:
        name, weight = str(item[0]), item[1]
    else:
        head, colon, _ = str(item).rpartition(":")
        given = parse_weighted(str(item))
        name, weight = (head if colon and str(given.path) == head else str(item)), given.weight
    try:
        return f"{file(name)}:{float(weight)!r}"
    except (TypeError, ValueError):
        raise UserError(f"the weight {weight!r} is no number", where=name) from None


def _number(option: ToolOption, value: Any) -> str:
    try:
        return str(int(value)) if option.type == "int" else repr(float(value))
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{option.name}: {value!r} is not a number") from None
