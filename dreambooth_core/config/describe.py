"""A configuration's dataclasses as data, for the user interfaces that draw them.

Standard library only, so that a host describes the engine's options without its packages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dreambooth_core.config.shapes import Member, Shape, find, members, present


def describe(schema: type) -> dict[str, Any]:
    """The tree of a dataclass, ready for JSON.

    Returns:
        ``{"name", "type": "section", "label", "help", "children": [...]}``. A child has ``name``
        (its own), ``key`` (dotted, from the root; the fields of a list's items begin with
        ``list[].``), ``type`` (bool, int, float, str, list, dict, section), ``optional``,
        ``required``, ``default``, ``label``, ``help``, ``minimum``, ``maximum``, ``choices``,
        ``open``, ``unit``, ``advanced``, ``path``, ``aliases``; sections have ``children``, lists
        and dicts ``item``.
    """
    return {
        "name": schema.__name__,
        "type": "section",
        "label": schema.__name__,
        "help": " ".join((schema.__doc__ or "").split("\n\n")[0].split()),
        "children": [_member(each, "") for each in members(schema).values()],
    }


def flatten(config: Any) -> dict[str, Any]:
    """Every value by its dotted key: ``{"optim.lr": …, "concepts[0].images": …}``.

    Takes dataclasses, and the nested dicts and lists that :func:`nest` makes.
    An empty list or dict is kept as a value, so nothing is lost. The keys are those that
    ``key=value`` takes.
    """
    flat: dict[str, Any] = {}
    _flatten(config, "", flat)
    return flat


def nest(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`flatten`: nested dicts and lists, as a YAML or JSON file holds them.

    Raises:
        ValueError: a key is not one that :func:`flatten` makes.
    """
    root: dict[str, Any] = {}
    for key, value in flat.items():
        steps = split_key(key)
        here: Any = root
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            empty: Any = value if following is None else [] if isinstance(following, int) else {}
            if isinstance(step, int):
                while len(here) <= step:
                    here.append(empty if len(here) == step else {})
            elif step not in here:
                here[step] = empty
            if following is None:
                here[step] = value
            here = here[step]
    return root


def renamed(schema: type, flat: Mapping[str, Any]) -> dict[str, Any]:
    """The same values by the names that their fields have now; unknown keys stay as they are."""
    return {_present_key(schema, key): value for key, value in flat.items()}


def _present_key(schema: type, key: str) -> str:
    shape, now = Shape("section", schema=schema), ""
    key = present(schema, key)
    try:
        steps = split_key(key)
    except ValueError:
        return key
    for step in steps:
        if shape.schema is not None and isinstance(step, str):
            member = find(shape.schema, step)
            if member is None:
                return key
            step, shape = member.name, member.shape
        elif shape.item is not None:
            shape = shape.item
        now = joined(now, step)
    return now


def joined(key: str, step: str | int) -> str:
    """A key one step further down."""
    if isinstance(step, int):
        return f"{key}[{step}]"
    return f"{key}.{step}" if key else step


def split_key(key: str) -> list[str | int]:
    """``concepts[0].images`` or ``concepts.0.images`` as ``["concepts", 0, "images"]``.

    Raises:
        ValueError: an empty part.
    """
    steps: list[str | int] = []
    for part in key.strip().replace("[", ".[").split("."):
        if part.startswith("[") and part.endswith("]") and part[1:-1].isdigit():
            steps.append(int(part[1:-1]))
        elif part.isdigit():
            steps.append(int(part))
        elif part and not part.startswith("["):
            steps.append(part)
        else:
            raise ValueError(f"{key!r} is not a key")
    return steps


def _flatten(value: Any, key: str, flat: dict[str, Any]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for name in members(type(value)):
            _flatten(getattr(value, name), joined(key, name), flat)
    elif isinstance(value, dict) and (value or not key):
        for name, item in value.items():
            _flatten(item, joined(key, str(name)), flat)
    elif isinstance(value, list) and any(map(_has_keys, value)):
        for number, item in enumerate(value):
            _flatten(item, joined(key, number), flat)
    else:
        flat[key] = value


def _has_keys(item: Any) -> bool:
    """Whether an item of a list is a section: its fields have keys of their own."""
    return dataclasses.is_dataclass(item) or isinstance(item, dict)


def _member(member: Member, prefix: str) -> dict[str, Any]:
    info = member.info
    key = prefix + member.name
    described: dict[str, Any] = {"name": member.name, "key": key, "required": member.required}
    described |= vars(info)
    described["choices"] = list(info.choices) if info.choices is not None else None
    described["aliases"] = list(info.aliases)
    del described["renamed"]
    if member.shape.kind != "section":
        described["default"] = _data(member.default)
    return described | _shape(member.shape, key)


def _shape(shape: Shape, key: str) -> dict[str, Any]:
    described: dict[str, Any] = {"type": shape.kind, "optional": shape.optional}
    if shape.schema is not None:
        children = members(shape.schema).values()
        described["children"] = [_member(each, key + ".") for each in children]
    if shape.item is not None:
        described["item"] = _shape(shape.item, key + "[]")
    return described


def _data(value: Any) -> Any:
    """Dataclasses inside defaults as dicts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, list):
        return [_data(item) for item in value]
    if isinstance(value, dict):
        return {key: _data(item) for key, item in value.items()}
    return value
