"""What a node is, said once; classes of ComfyUI's both schemas are made from it.

Standard library only. Texts are English here; ``locales/`` holds the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

PREFIX = "DreamBooth"
CATEGORY = "DreamBooth"

BASE = "DREAMBOOTH_BASE"
CONCEPT = "DREAMBOOTH_CONCEPT"
IMAGES = "DREAMBOOTH_IMAGES"
SETTINGS = "DREAMBOOTH_SETTINGS"
ADAPTER = "DREAMBOOTH_ADAPTER"
STACK = "DREAMBOOTH_STACK"
"""Types of our own that run along links."""


class Choice(str):
    """An output's type that also goes where the host has a choice: it compares types by ``!=``, and
    says a choice as the list of what can be chosen."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, list) and super().__ne__(other)


FILE_NAME = Choice("STRING,COMBO")
"""A file as the host lists it: text, and a choice of its loaders."""

Choices = Sequence[str] | Callable[[], Sequence[str]]


@dataclass(frozen=True)
class Input:
    """One input: a widget, or a socket that another node is linked to."""

    id: str
    type: str
    label: str
    tooltip: str
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    choices: Choices = ()
    multiline: bool = False
    optional: bool = False

    def names(self) -> list[str]:
        """The choices as they are now."""
        return list(self.choices() if callable(self.choices) else self.choices)

    def options(self) -> dict[str, Any]:
        """What both schemas call by the same names; without what is not said."""
        said: dict[str, Any] = {"tooltip": self.tooltip, "default": self.default}
        if self.type in ("INT", "FLOAT"):
            said |= {"min": self.minimum, "max": self.maximum, "step": self.step}
        if self.type == "STRING":
            said |= {"multiline": self.multiline}
        return {name: value for name, value in said.items() if value is not None}


@dataclass(frozen=True)
class Output:
    """One output."""

    type: str
    label: str
    tooltip: str


TOLD = Output("STRING", "TEXT", "What the node shows, for any node that takes text.")
"""The last output of nodes whose lines are worth passing on; :func:`execute` fills it."""


@dataclass
class Result:
    """What a node hands on, and the lines of text that it shows."""

    values: tuple[Any, ...]
    lines: Sequence[str] = ()


@dataclass(frozen=True)
class Node:
    """One node."""

    id: str
    label: str
    about: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    run: Callable[..., Result]
    """Called with the inputs by name, and ``node_id``: the node's number in the graph."""
    group: str = ""
    """The submenu."""
    is_output: bool = False
    """Whether it is worth running with nothing linked to its outputs."""
    fingerprint: Callable[..., Any] | None = None
    """Called with the widgets by name: a value that changes when what they name has changed."""

    @property
    def category(self) -> str:
        """Where it stands in the menu."""
        return f"{CATEGORY}/{self.group}" if self.group else CATEGORY


def execute(node: Node, inputs: dict[str, Any], node_id: str | None) -> Result:
    """Runs a node. Absent optional inputs get their default."""
    given = {each.id: each.default for each in node.inputs if each.optional}
    result = node.run(**{**given, **inputs}, node_id=node_id)
    if TOLD in node.outputs:
        result.values = (*result.values, "\n".join(result.lines))
    return result
