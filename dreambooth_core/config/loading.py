"""One configuration out of defaults, a preset, files and ``key=value``.

The layers, each over the one before: the dataclasses' defaults → the preset → the files, in
order → the overrides. Sections are merged key by key; lists are replaced as a whole. Relative
paths in a file are relative to that file, those of defaults and overrides to the working
directory; only fields that say they are paths are touched.

:func:`load` stops at the first error, as a command line should; a form marks all of them
(:func:`mark`). What depends on several values or on files is found by the engine alone.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from dreambooth_core.config.catalogue import budget_of, entry, names
from dreambooth_core.config.describe import joined, split_key
from dreambooth_core.config.fields import FieldInfo
from dreambooth_core.config.reading import (
    COMMAND_LINE,
    SUFFIXES,
    Source,
    compose,
    read_file,
    read_node,
    read_text,
    read_yaml,
    unknown_key,
)
from dreambooth_core.config.shapes import Shape, find, members, present, tell_renamed
from dreambooth_core.config.suggest import advice, nearest
from dreambooth_core.config.writing import dump as dump
from dreambooth_core.errors import UserError

T = TypeVar("T")
Preset = str | os.PathLike[str]


def load(
    schema: type[T],
    *,
    preset: Preset | Sequence[Preset] | None = None,
    files: Iterable[str | os.PathLike[str]] = (),
    overrides: Iterable[str] = (),
    by_hand: set[str] | None = None,
) -> T:
    """Builds a configuration and checks every value of it.

    Args:
        schema: the root dataclass.
        preset: a name out of :func:`catalogue.names`, or a YAML file; or several, each over those
            before.
        files: YAML or JSON files.
        overrides: ``key=value``; keys are dotted, with ``[n]`` for the items of a list (the
            number after the last adds one). Texts are taken as they are, lists and sections
            are YAML in flow style: ``concepts=[{images: dog}]``.
        by_hand: is filled with the keys that a person set: not those of the engine's presets.

    Raises:
        UserError: an unknown key, a wrong value, a missing or broken file; one line that says
            where.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    origins: dict[str, str] = {}
    presets, budget = _layers(preset)
    shipped: dict[str, str] = {}
    try:
        config: Any = _blank(schema)
        for each in presets:
            here: dict[str, str] = {}
            if isinstance(each, Path):
                values = read_file(each, schema, here)
            else:
                values = read_yaml(
                    preset_text(each), Source(each, Path.cwd(), schema, origins=here)
                )
                shipped |= here
            config.merge_with(values)
            origins |= here
        if budget:
            config.merge_with({"memory": {"budget": budget}})
        for file in files:
            path = Path(os.path.expanduser(file))
            config.merge_with(read_file(path, schema, origins))
        source = Source(COMMAND_LINE, Path.cwd(), schema, lines=False, origins=origins)
        for override in overrides:
            _override(config, override, source)
        missing = OmegaConf.missing_keys(config)
        if missing:
            what = f"{', '.join(sorted(missing))} must be set"
            do = "Set it in the file or as key=value."
            raise UserError(what, where=_origin(min(missing), origins), do=do)
        built = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        key = getattr(error, "full_key", None) or ""
        raise UserError(f"{key}: {reason}" if key else reason, where=origins.get(key)) from error
    except ValueError as error:  # a section's own check
        raise UserError(str(error)) from error
    _settle(built)
    validate(built, origins)
    if by_hand is not None:
        by_hand |= {key for key, where in origins.items() if shipped.get(key) != where}
    return cast(T, built)


def _settle(config: Any) -> None:
    """Makes relative paths among the defaults absolute, in place: what was in effect must mean
    the same when it is loaded again from the run's folder."""
    schema: type = type(config)
    for member in members(schema).values():
        value = getattr(config, member.name)
        items = value if isinstance(value, list) else [value]
        for item in items:
            if dataclasses.is_dataclass(item):
                _settle(item)
        if member.info.path in ("file", "folder") and isinstance(value, str) and value:
            setattr(config, member.name, os.path.abspath(os.path.expanduser(value)))


def _layers(preset: Preset | Sequence[Preset] | None) -> tuple[list[Path | str], str]:
    """Files of presets and names of the engine's own, and the memory budget that one of them
    stands for."""
    given = [preset] if isinstance(preset, (str, os.PathLike)) else list(preset or ())
    found, budget = list[Path | str](), ""
    for each in given:
        size = budget_of(str(each))
        path = Path(os.path.expanduser(each))
        if size:
            tell_renamed(f"the preset {each}", f"memory.budget={size}")
        else:
            found.append(path if path.suffix in SUFFIXES else str(each))
        budget = size or budget
    return found, budget


def preset_text(name: str) -> str:
    """The YAML of one of the engine's own presets. Raises ``UserError`` for no such name."""
    if name not in names():
        raise UserError(f"unknown preset {name!r}", do=advice(name, names()) or None)
    return entry(name).text


def _override(config: Any, override: str, source: Source) -> None:
    """Sets one ``key=value`` in an OmegaConf node."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"{override!r} sets nothing", where=source.name, do="Write key=value.")
    key = present(source.schema, key)
    try:
        steps = split_key(key)
    except ValueError as error:
        raise UserError(str(error), where=source.name, do="Keys look like a.b or a[0].b.") from None
    here, shape, info, parent = config, Shape("section", schema=source.schema), None, None
    walked, step = "", steps[0]
    for given in steps:
        parent = here
        step, shape, info = below(shape, info, given, walked, source)
        if isinstance(step, int):
            _grow(here, step, shape, walked, source)
        walked = joined(walked, step)
        source.origins.setdefault(walked, source.name)
        here = here[step] if isinstance(step, int) or step in here else None
        if here is None and shape.kind == "section" and shape.schema is not None:
            parent[step] = _blank(shape.schema)
            here = parent[step]
    value = _value(text, shape, walked, info, source)
    source.origins[walked] = source.name
    assert parent is not None
    if isinstance(step, str):
        parent.merge_with({step: value})
    elif shape.kind == "section":
        here.merge_with(value)
    else:
        parent[step] = value


def below(
    shape: Shape, info: FieldInfo | None, step: str | int, walked: str, source: Source
) -> tuple[str | int, Shape, FieldInfo | None]:
    """One step further down a key: the step by its present name, and the type there."""
    if shape.kind == "section" and shape.schema is not None:
        member = find(shape.schema, str(step))
        if member is None:
            raise unknown_key(str(step), walked, shape.schema, source, source.name)
        return member.name, member.shape, member.info
    if shape.kind == "list" and isinstance(step, int) and shape.item is not None:
        return step, shape.item, info
    if shape.kind == "dict" and shape.item is not None:
        return step, shape.item, None
    if shape.kind == "list":
        do = f"Its items are {walked}[0], {walked}[1] …"
        raise UserError(f"{walked} is a list and has no {step!r}", where=source.name, do=do)
    raise UserError(f"{walked} is a single value and has no {step!r}", where=source.name)


def _grow(items: Any, index: int, shape: Shape, walked: str, source: Source) -> None:
    """Makes room for the item after the last."""
    if index > len(items):
        raise UserError(
            f"{walked}[{index}] would leave a gap: {walked} has {len(items)} items",
            where=source.name,
        )
    if index == len(items):
        empty: dict[str, Any] = {"bool": False, "int": 0, "float": 0.0, "str": "", "list": []}
        items.append(_blank(shape.schema) if shape.schema else empty.get(shape.kind, {}))


def _blank(schema: type) -> Any:
    """A section with its required fields still to be set."""
    return copy.deepcopy(_made(schema))


@cache
def _made(schema: type) -> Any:
    """A section as OmegaConf has it, which takes six times as long as a copy of it."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(schema)


def _value(text: str, shape: Shape, key: str, info: FieldInfo | None, source: Source) -> Any:
    """The value of an override: texts as they are, numbers leniently, the rest as YAML."""
    if shape.optional and text.strip() in ("null", "~"):
        return None
    if shape.kind in ("section", "list", "dict"):
        node = compose(text, source)
        if node is None:
            return [] if shape.kind == "list" else {}
        return read_node(node, shape, key, info, source)
    return read_text(text, shape, key, info, source)


def validate(config: Any, origins: dict[str, str] | None = None, prefix: str = "") -> None:
    """Checks ranges and choices of every field, in sections and lists too.

    Raises:
        UserError: the first value that is outside, and what is allowed.
    """
    schema: type = type(config)
    for member in members(schema).values():
        key = prefix + member.name
        check_value(getattr(config, member.name), key, member.info, origins or {})


def check_value(value: Any, key: str, info: FieldInfo, origins: dict[str, str]) -> None:
    """Checks one value, and what is in it. Raises ``UserError`` as :func:`validate` does."""
    if dataclasses.is_dataclass(value):
        validate(value, origins, key + ".")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_value(item, f"{key}[{number}]", info, origins)
    elif isinstance(value, dict):
        for name, item in value.items():
            check_value(item, f"{key}.{name}", info, origins)
    elif isinstance(value, str):
        if info.choices is not None and not info.open and value not in info.choices:
            do = f"Choose from {', '.join(info.choices)}."
            near = nearest(value, info.choices)
            if near is not None:
                do = f"Did you mean {near}? {do}"
            what = f"{key}: {value!r} is not a choice"
            raise UserError(what, where=_origin(key, origins), do=do)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{key}: {value} is not a finite number", where=_origin(key, origins))
        low = info.minimum is not None and value < info.minimum
        high = info.maximum is not None and value > info.maximum
        if low or high:
            what = f"{key}: {value} is too {'small' if low else 'large'}"
            raise UserError(what, where=_origin(key, origins), do=f"Allowed: {_range(info)}.")


def _range(info: FieldInfo) -> str:
    unit = f" {info.unit}" if info.unit else ""
    if info.minimum is not None and info.maximum is not None:
        return f"{info.minimum:g} to {info.maximum:g}{unit}"
    if info.minimum is not None:
        return f"{info.minimum:g}{unit} and more"
    return f"{info.maximum:g}{unit} and less"


def _origin(key: str, origins: dict[str, str]) -> str | None:
    """Where a key, or the nearest thing around it, was set; None for a default."""
    while key and key not in origins:
        dot, bracket = key.rfind("."), key.rfind("[")
        key = key[: max(dot, bracket)] if max(dot, bracket) > 0 else ""
    return origins.get(key) if key else None


def mark(schema: type, flat: Mapping[str, Any]) -> dict[str, str]:
    """What is wrong with each value: its key → one line. Empty when all are right.

    Args:
        schema: the root dataclass.
        flat: values by dotted keys, as :func:`dreambooth_core.config.describe.flatten` makes them.
    """
    wrong: dict[str, str] = {}
    for key, value in flat.items():
        try:
            _check(schema, key, value)
        except UserError as error:
            error.where = None
            wrong[key] = error.line
    return wrong


def _check(schema: type, key: str, value: Any) -> None:
    source = Source("", Path.cwd(), schema, lines=False)
    shape, info, walked = Shape("section", schema=schema), None, ""
    try:
        steps = split_key(present(schema, key))
    except ValueError as error:
        raise UserError(str(error)) from None
    for given in steps:
        step, shape, info = below(shape, info, given, walked, source)
        walked = joined(walked, step)
    if value is None and shape.optional:
        return
    node = None if value is None else compose(json.dumps(value), source)  # JSON is YAML
    if node is None:
        raise UserError(f"{key} needs a value")
    read = read_node(node, shape, key, info, source)
    if info is not None:
        check_value(read, key, info, {})
