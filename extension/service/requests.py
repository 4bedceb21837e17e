"""The tools' requests: typed by the commands' own options, every path in them confined."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from dreambooth_core.commands.options import WRITTEN, Argument, arguments, from_request
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.requests import WeightedFile

from .types import ToolOption

TOOLS = ("inspect", "merge", "bake", "extract", "convert", "resize")
HIDDEN = ("json", "beside", "tokenizers")


class Files(Protocol):
    """From what somebody wrote to files that may be used."""

    def read(self, text: str, kind: str) -> Path:
        """A file or folder to read. Raises ``UserError`` where it may not be."""

    def write(self, text: str, kind: str, *, beside: Path | None) -> Path:
        """A new file or folder. Raises ``UserError`` where it may not be.

        Args:
            beside: the file that the result is made of, where the tool reads one.
        """


def schema(tool: str) -> type:
    """The dataclass of a tool's options.

    Raises:
        UserError: there is no such tool.
    """
    if tool not in TOOLS:
        raise UserError(f"there is no tool named {tool[:60]!r}", do=f"Known: {', '.join(TOOLS)}.")
    found: type = importlib.import_module(f"dreambooth_core.commands.{tool}").Options
    return found


def fields(tool: str) -> list[Argument]:
    """What a tool takes, in the command line's order."""
    return [each for each in arguments(schema(tool)) if each.name not in HIDDEN]


def options(tool: str) -> list[ToolOption]:
    """What a tool takes, for forms."""
    return [
        ToolOption(
            name=each.name,
            label=each.info.label,
            help=each.info.help,
            type=_type(each),
            required=each.required,
            default=each.default,
            choices=list(each.info.choices) if each.info.choices else None,
        )
        for each in fields(tool)
    ]


def _type(each: Argument) -> str:
    if each.type == "path":
        return "output" if each.info.path in WRITTEN else "file"
    return "numbers" if each.numbers else each.type


def request(tool: str, values: Mapping[str, Any], files: Files) -> dict[str, Any]:
    """The options of a tool's task.

    Args:
        tool: its name.
        values: by the options' names; what is empty is left out.
        files: decides which may be used.

    Raises:
        UserError: a value is missing, unknown or of the wrong type, or a path is not allowed.
    """
    known = fields(tool)
    given = {name: value for name, value in values.items() if value not in (None, "", [])}
    for name in HIDDEN:
        if name in given:
            raise UserError(f"there is no option {name!r}")
    typed: Any = from_request(schema(tool), given)
    made: dict[str, Any] = {each.name: getattr(typed, each.name) for each in known}
    sources = [each for each in known if each.info.path and each.info.path not in WRITTEN]
    for each in sources:
        if each.type == "weighted":
            made[each.name] = [_settled(part, each.info.path, files) for part in made[each.name]]
        elif made[each.name] is not None:
            made[each.name] = files.read(str(made[each.name]), each.info.path)
    source = made.get("source")
    for each in known:
        if each.info.path in WRITTEN:
            # As it was written: a Path forgets the "/" at the end that says "a folder".
            made[each.name] = files.write(str(given[each.name]), each.info.path, beside=source)
    return made


def _settled(part: WeightedFile, kind: str, files: Files) -> WeightedFile:
    return dataclasses.replace(part, path=files.read(str(part.path), kind))
