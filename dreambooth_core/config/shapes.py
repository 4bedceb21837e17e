"""What type a configuration field has. Standard library only."""

from __future__ import annotations

import dataclasses
import logging
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Union

from dreambooth_core.config.fields import FieldInfo

log = logging.getLogger(__name__)

SCALARS: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str", Path: "path"}


@dataclass(frozen=True)
class Shape:
    """A field's type, taken apart."""

    kind: str
    """``bool``, ``int``, ``float``, ``str``, ``path``, ``list``, ``dict`` or ``section``."""
    optional: bool = False
    """Whether None is a value."""
    item: Shape | None = None
    """What a list or dict holds; the keys of a dict are texts."""
    schema: type | None = None
    """The dataclass of a section."""


@dataclass(frozen=True)
class Member:
    """A field of a section."""

    name: str
    shape: Shape
    info: FieldInfo
    field: dataclasses.Field[Any]

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        missing = dataclasses.MISSING
        return self.field.default is missing and self.field.default_factory is missing

    @property
    def default(self) -> Any:
        """Its default, made anew where it is made; None where it has none."""
        if self.field.default is not dataclasses.MISSING:
            return self.field.default
        made = self.field.default_factory
        return None if made is dataclasses.MISSING else made()


@cache
def members(schema: type) -> dict[str, Member]:
    """The fields of a dataclass by name, in order.

    Raises:
        TypeError: a field has a type that configurations do not use.
    """
    hints = typing.get_type_hints(schema)
    found: dict[str, Member] = {}
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        try:
            shape = shape_of(hints[field.name])
        except TypeError as error:
            raise TypeError(f"{schema.__name__}.{field.name}: {error}") from None
        info: FieldInfo = field.metadata.get("info") or FieldInfo(label=field.name)
        label = info.label or field.name.replace("_", " ").capitalize()
        info = dataclasses.replace(info, label=label)
        found[field.name] = Member(field.name, shape, info, field)
    return found


def find(schema: type, name: str) -> Member | None:
    """The field of that name, or that had it in an earlier version: then it is said, once."""
    known = members(schema)
    if name in known:
        return known[name]
    for member in known.values():
        if name in member.info.aliases:
            tell_renamed(name, member.name)
            return member
    return None


@cache
def moved(schema: type) -> dict[str, str]:
    """Present keys by those that fields had in another section: their aliases with a dot."""
    found: dict[str, str] = {}
    for section in members(schema).values():
        inner = section.shape.schema if section.shape.kind == "section" else None
        for member in members(inner).values() if inner is not None else ():
            now = f"{section.name}.{member.name}"
            found |= {old: now for old in member.info.aliases if "." in old}
    return found


def present(schema: type, key: str) -> str:
    """A key, or what it is since its field went to another section: then it is said, once."""
    now = moved(schema).get(key)
    if now is None:
        return key
    tell_renamed(key, now)
    return now


@cache
def tell_renamed(old: str, new: str) -> None:
    """Says that something has another name now, once."""
    log.warning("%s is called %s now; the old name goes with the next version", old, new)


def shape_of(hint: Any) -> Shape:
    """Takes a type annotation apart.

    Raises:
        TypeError: a type that configurations do not use.
    """
    if hint in SCALARS:
        return Shape(SCALARS[hint])
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return Shape("section", schema=hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        others = [each for each in arguments if each is not type(None)]
        if len(others) == 1 and len(arguments) == 2:
            return dataclasses.replace(shape_of(others[0]), optional=True)
    if origin is list and len(arguments) == 1:
        return Shape("list", item=shape_of(arguments[0]))
    if origin is dict and len(arguments) == 2 and arguments[0] is str:
        return Shape("dict", item=shape_of(arguments[1]))
    raise TypeError(f"{hint!r} is not a type that configurations use")


def paths(schema: type, prefix: str = "") -> list[str]:
    """The dotted name of every field, those of sections and of list items (``a[].b``) included."""
    names: list[str] = []
    for member in members(schema).values():
        name = prefix + member.name
        inner = member.shape
        while inner.kind == "list" and inner.item is not None:
            name, inner = name + "[]", inner.item
        if inner.kind == "section" and inner.schema is not None:
            names += paths(inner.schema, name + ".")
        else:
            names.append(prefix + member.name)
    return names
