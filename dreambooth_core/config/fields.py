"""How a configuration field says what it is. Standard library only.

Every user interface (command line, WebUI tab, ComfyUI nodes) draws its controls from this
metadata, so a label, a help text or a range is written once, beside the code that reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

MAX_SEED = 2**53 - 1
"""The largest whole number that every program reads exactly from JSON."""
MAX_STEPS = 100_000_000
"""Years of training."""


@dataclass(frozen=True)
class FieldInfo:
    """What a user interface needs to know of one field."""

    label: str = ""
    """Empty where the field's own name says it."""
    help: str = ""
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
    help: str,
    between: tuple[float | None, float | None] = (None, None),
    factory: Callable[[], Any] | None = None,
    **facts: Any,
) -> Any:
    """A dataclass field with its :class:`FieldInfo`, whose other values ``facts`` are.

    ``default`` for plain values, ``factory`` for lists, dicts and nested dataclasses; ``between``
    the least and the largest number, both inclusive.
    """
    low, high = between
    info = FieldInfo(help=" ".join(help.split()), minimum=low, maximum=high, **facts)
    return described(info, default, factory)


advanced = partial(option, advanced=True)
"""An option that few need to see."""


def described(
    info: FieldInfo, default: Any, factory: Callable[[], Any] | None, **metadata: Any
) -> Any:
    """A dataclass field of which ``info`` is known, and whatever else."""
    given = {"default_factory": factory} if factory is not None else {"default": default}
    return dataclasses.field(metadata={"info": info, **metadata}, **given)


def section(kind: type, *, help: str, label: str = "") -> Any:
    """A nested group of options, itself a dataclass of options."""
    return option(factory=kind, label=label, help=help)
