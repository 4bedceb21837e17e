"""Reads configuration text by the schema that it fills, so that every error has a line.

YAML is read by the type of the field it is for, not by the look of the value: ``cache: off`` is
the word *off* where a choice is expected, ``007`` stays a text, ``1e-4`` is a number. Anchors and
aliases work; merge keys (``<<``), tags and interpolations (``${…}``) are refused: a
configuration from elsewhere must not be able to read the environment.

OmegaConf then merges what was read and checks it against the dataclasses (:mod:`loading`). Its own
reader takes values by their look, forgets lines, knows no former names and no limits.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

from dreambooth_core.config.fields import FieldInfo
from dreambooth_core.config.shapes import Shape, find, members, paths, present, tell_renamed
from dreambooth_core.config.suggest import advice, nearest
from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    import yaml

NULLS = ("", "~", "null", "Null", "NULL")
TRUE = ("true", "yes", "on", "y", "1")
FALSE = ("false", "no", "off", "n", "0")
COMMAND_LINE = "command line"

LARGEST = 500_000
"""Bytes of a configuration: a hundred times a long one, and a few seconds to read."""
MOST_ITEMS = 1_000
"""Of a list or of keys with values."""
LONGEST_TEXT = 10_000
"""Characters of a value: more than any text encoder reads."""

_TAGS = ("null", "bool", "int", "float", "str", "timestamp", "value", "seq", "map")
"""What YAML itself takes plain values for."""

_NAMES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "list": "a list, like [a, b]",
    "dict": "keys with values, like {a: 1}",
    "section": "a section: keys with values",
}


@dataclass
class Source:
    """Where a piece of configuration comes from."""

    name: str
    """The file, or ``command line``."""
    folder: Path
    """What relative paths in it are relative to."""
    schema: type
    """The root dataclass, to know where a misplaced key belongs."""
    lines: bool = True
    origins: dict[str, str] = field(default_factory=dict)
    """Key → where it was set; shared by all sources of one configuration."""
    moved: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Values, and where they stand, of keys that are in another section since."""

    def at(self, node: yaml.Node | None) -> str:
        if node is None or not self.lines:
            return self.name
        return f"{self.name}:{node.start_mark.line + 1}"


def read_file(path: Path, schema: type, origins: dict[str, str]) -> dict[str, Any]:
    """The values that a YAML (or JSON) file sets, as nested dicts of the right types.

    Raises:
        UserError: the file is missing, is not YAML, or has a wrong key or value; with the line.
    """
    return read_yaml(
        _text(path), Source(str(path), path.absolute().parent, schema, origins=origins)
    )


def read_yaml(text: str, source: Source) -> dict[str, Any]:
    """What :func:`read_file` gives, of a text."""
    node = compose(text, source)
    if node is None:
        return {}
    value = read_node(node, Shape("section", schema=source.schema), "", None, source)
    assert isinstance(value, dict)
    for key, (found, where) in source.moved.items():
        _put(value, key, found, where, source)
    return value


def _put(values: dict[str, Any], key: str, value: Any, where: str, source: Source) -> None:
    """Puts the value of a key of an earlier version where its field is now.

    Configurations that runs wrote name both: one that stands at its default then says nothing.

    Raises:
        UserError: both say something.
    """
    section, _, name = key.partition(".")
    place = values.setdefault(section, {})
    schema = members(source.schema)[section].shape.schema
    assert schema is not None
    default = members(schema)[name].field.default
    if value == default:
        return
    if place.get(name, default) != default:
        raise UserError(f"{key} is set twice", where=where)
    place[name] = value
    source.origins[key] = where


def _text(path: Path) -> str:
    if not os.path.lexists(path):
        near = None
        if path.parent.is_dir():
            names = [each.name for each in path.parent.iterdir() if each.suffix in SUFFIXES]
            near = nearest(path.name, names)
        do = f"Did you mean {near}?" if near else "Check the path."
        raise UserError("no such configuration file", where=path, do=do)
    try:
        return read_bytes(path, LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("not a text in UTF-8", where=path, do="Save it as UTF-8.") from error


SUFFIXES = (".yaml", ".yml", ".json")


def compose(text: str, source: Source) -> yaml.Node | None:
    """The nodes of a YAML text; None for an empty one.

    Raises:
        UserError: the text is not YAML.
    """
    import yaml

    try:
        node: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source.name}:{mark.line + 1}" if mark and source.lines else source.name
        problem = error.problem or "not YAML"
        raise UserError(f"not valid YAML: {problem}", where=place, do=_yaml_hint(problem)) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = (str(error).splitlines() or ["it cannot be read"])[0]
        raise UserError(f"not valid YAML: {reason}", where=source.name) from None
    except RecursionError:
        raise UserError("not valid YAML: it is nested too deeply", where=source.name) from None
    if isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULLS:
        return None
    return node


def _yaml_hint(problem: str) -> str | None:
    if "\\t" in problem or "tab" in problem:
        return "Indent with spaces, not tabs."
    if "mapping values are not allowed" in problem:
        return "Put a text that contains ': ' in quotes."
    if "unknown escape" in problem or "escape sequence" in problem:
        return "Put a Windows path in 'single quotes'."
    return None


def read_node(
    node: yaml.Node, shape: Shape, key: str, info: FieldInfo | None, source: Source
) -> Any:
    """The value of ``node`` for a field of ``shape``: nested dicts, lists and scalars."""
    import yaml

    if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS:
        raise UserError(
            f"{_title(key)}: the tag {node.tag} is not used here", where=source.at(node)
        )
    source.origins[key] = source.at(node)
    null = isinstance(node, yaml.ScalarNode) and node.style is None and node.value in NULLS
    if null and shape.optional:
        return None
    if null and (shape.kind == "dict" or (shape.kind == "section" and key)):
        return {}  # a heading whose lines are all commented out
    kinds = {"section": yaml.MappingNode, "dict": yaml.MappingNode, "list": yaml.SequenceNode}
    if not isinstance(node, kinds.get(shape.kind, yaml.ScalarNode)):
        raise _wrong(node, shape, key, source)
    if shape.kind == "section":
        return _section(node, shape, key, source)
    if shape.kind == "dict":
        return _dict(node, shape, key, source)
    if shape.kind == "list":
        assert shape.item is not None
        _refuse_many(len(node.value), "items", key, source.at(node))
        return [
            read_node(item, shape.item, f"{key}[{number}]", info, source)
            for number, item in enumerate(node.value)
        ]
    if null and not (shape.kind == "str" and node.value == ""):
        raise UserError(f"{key} needs a value", where=source.at(node), do=_expected(shape))
    return read_text(node.value, shape, key, info, source, node)


def read_text(
    text: str,
    shape: Shape,
    key: str,
    info: FieldInfo | None,
    source: Source,
    node: yaml.Node | None = None,
) -> bool | int | float | str:
    """One scalar of type ``shape`` from its text.

    Raises:
        UserError: the text is not of that type.
    """
    if "${" in text or text == "???":
        raise UserError(
            f"{key}: {text!r} is an interpolation, which is not supported", where=source.at(node)
        )
    if shape.kind == "str":
        check_text(text, key, source.at(node))
        if info is not None and text in info.renamed:
            tell_renamed(text, info.renamed[text])
            return info.renamed[text]
        return _place(text, info, source) if info is not None and info.path else text
    word = text.strip().lower()
    value: bool | int | float | None = None
    if shape.kind == "bool":
        value = True if word in TRUE else False if word in FALSE else None
    else:
        number = _number(word)
        if number is not None and (shape.kind == "float" or number == int(number)):
            value = float(number) if shape.kind == "float" else int(number)
    if value is None:
        raise UserError(f"{key}: {text!r} is not {_NAMES[shape.kind]}", where=source.at(node))
    return value


def check_text(text: str, key: str, where: str | None = None) -> str:
    """The same text. Raises ``UserError`` for one that is too long, or that no file can hold."""
    if len(text) > LONGEST_TEXT:
        what = f"{key} has {len(text):,} characters"
        raise UserError(what, where=where, do=f"At most {LONGEST_TEXT:,}.")
    strange = next((c for c in text if _is_strange(c)), None)
    if strange is not None:
        raise UserError(f"{key} has the control character {strange!a}", where=where)
    return text


def _is_strange(character: str) -> bool:
    """Whether it is a control code, or half of a pair of UTF-16; not one of those by which Python
    stands for the bytes of file names that are no UTF-8."""
    if category(character) == "Cc":
        return character not in "\t\n\r"
    return "\ud800" <= character <= "\udfff" and not "\udc80" <= character <= "\udcff"


def _refuse_many(count: int, things: str, key: str, where: str) -> None:
    if count > MOST_ITEMS:
        raise UserError(f"{key} has {count:,} {things}", where=where, do=f"At most {MOST_ITEMS:,}.")


_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?")


def _number(word: str) -> int | float | None:
    """A finite number; no octal, no base 60, no infinity."""
    if not _NUMBER.fullmatch(word):
        return None
    try:
        return int(word)
    except ValueError:
        value = float(word)
    return value if math.isfinite(value) else None


def _place(text: str, info: FieldInfo | None, source: Source) -> str:
    """A path made absolute, relative to the file that names it.

    Where a field takes names as well (``path="any"``: a base may be a hub id), what has no
    separator and no suffix is a name, and ``a/b`` is a path only if it exists or begins with a
    dot.
    """
    if not text or info is None:
        return text
    path = Path(os.path.expanduser(text))
    absolute = Path(os.path.abspath(source.folder / path))
    if info.path == "any" and not path.is_absolute():
        explicit = re.match(r"\.{1,2}([/\\]|$)", text) is not None
        looks_like_one = "/" in text or os.sep in text or bool(path.suffix)
        if not explicit and not (looks_like_one and os.path.exists(absolute)):
            return text
    return str(absolute)


def _section(node: yaml.Node, shape: Shape, key: str, source: Source) -> dict[str, Any]:
    assert shape.schema is not None
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = _key_text(name_node, key, source)
        member = find(shape.schema, name)
        full = f"{key}.{name}" if key else name
        now = present(source.schema, full)
        if now != full:
            home, _, last = now.partition(".")
            member = members(members(source.schema)[home].shape.schema)[last]
            apart = replace(source, origins={})
            read = read_node(value_node, member.shape, now, member.info, apart)
            source.moved[now] = read, source.at(value_node)
            continue
        if member is None:
            raise unknown_key(name, key, shape.schema, source, source.at(name_node))
        full = f"{key}.{member.name}" if key else member.name
        if member.name in values:
            raise UserError(f"{full} is set twice", where=source.at(name_node))
        values[member.name] = read_node(value_node, member.shape, full, member.info, source)
    return values


def _dict(node: yaml.Node, shape: Shape, key: str, source: Source) -> dict[str, Any]:
    assert shape.item is not None
    _refuse_many(len(node.value), "keys", key, source.at(node))
    values: dict[str, Any] = {}
    for name_node, value_node in node.value:
        name = check_text(_key_text(name_node, key, source), key, source.at(node))
        if name in values:
            raise UserError(f"{key}.{name} is set twice", where=source.at(name_node))
        values[name] = read_node(value_node, shape.item, f"{key}.{name}", None, source)
    return values


def _key_text(node: yaml.Node, key: str, source: Source) -> str:
    import yaml

    if not isinstance(node, yaml.ScalarNode):
        raise UserError(f"{_title(key)}: a key must be a word", where=source.at(node))
    return str(node.value)


def unknown_key(name: str, key: str, schema: type, source: Source, where: str) -> UserError:
    """The error for a key that is not there: names the nearest here, or where such a key is."""
    known = list(members(schema))
    full = f"{key}.{name}" if key else name
    near = nearest(name, known, cutoff=0.7)
    if near is None:
        everywhere = {
            each.rsplit(".", 1)[-1].removesuffix("[]"): each for each in paths(source.schema)
        }
        found = nearest(name, everywhere, cutoff=0.8)
        if found is not None:
            do = f"Did you mean {everywhere[found]}?"
            return UserError(f"unknown key {full}", where=where, do=do)
    return UserError(f"unknown key {full}", where=where, do=advice(name, known))


def _wrong(node: yaml.Node, shape: Shape, key: str, source: Source) -> UserError:
    found = {"scalar": "a single value", "sequence": "a list", "mapping": "keys with values"}
    what = found.get(getattr(node, "id", ""), "something else")
    if what == "a single value":
        what = repr(node.value)
    return UserError(f"{_title(key)} is {what}", where=source.at(node), do=_expected(shape))


def _expected(shape: Shape) -> str:
    return f"Expected: {_NAMES[shape.kind]}."


def _title(key: str) -> str:
    return key or "the configuration"
