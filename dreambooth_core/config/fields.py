"""How a configuration field says what it is. Standard library only.

Every user interface (command line, WebUI tab, ComfyUI nodes) draws its controls from this
metadata, so a label, a help text or a range is written once, beside the code that reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

MAX_SEED = 2**53 - 1
"""The largest whole number that every program reads exactly from JSON."""
MAX_STEPS = 100_000_000
"""Years of training."""


@dataclass(frozen=True)
class FieldInfo:
    """What a user interface needs to know of one field."""

    label: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: Collection[str] | None = None
    """Fixed, or the names in a registry, to which other packages add theirs."""
    open: bool = False
    """Whether other texts than the choices may be given."""
    unit: str = ""
    advanced: bool = False
    path: str = ""
    """``"file"``, ``"folder"`` or ``"any"`` where the value is a path."""
    aliases: tuple[str, ...] = ()
    """Names that the field had in earlier versions, the oldest last; with a dot, whole keys in
    another section."""
    renamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Choices by the names that they had."""


def option(
    default: Any = dataclasses.MISSING,
    *,
    label: str,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Collection[str] | None = None,
    open: bool = False,
    unit: str = "",
    advanced: bool = False,
    path: str = "",
    aliases: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
    factory: Callable[[], Any] | None = None,
) -> Any:
    """A dataclass field with its :class:`FieldInfo`.

    ``default`` for plain values, ``factory`` for lists, dicts and nested dataclasses.
    """
    info = FieldInfo(
        label=label,
        help=" ".join(help.split()),
        minimum=minimum,
        maximum=maximum,
        choices=choices,
        open=open,
        unit=unit,
        advanced=advanced,
        path=path,
        aliases=aliases,
        renamed=renamed or {},
    )
    metadata = {"info": info}
    if factory is not None:
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, *, label: str, help: str) -> Any:
    """A nested group of options, itself a dataclass of options."""
    return option(factory=kind, label=label, help=help)
