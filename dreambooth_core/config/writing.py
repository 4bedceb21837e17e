"""Writes a configuration as YAML that loads back equal. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import re
from textwrap import wrap
from typing import Any

from dreambooth_core.config.shapes import Member, members

_PLAIN = re.compile(r"[A-Za-z/][\w/.@+\-]*( [\w/.@+\-]+)*", re.ASCII)
"""Texts that need no quotes, whatever reads them."""

_WORDS = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "none"}


def dump(config: Any, *, help: bool = False) -> str:
    """The effective configuration as YAML text.

    Args:
        config: a dataclass of options.
        help: whether to put each field's help above it as a comment.
    """
    return "\n".join(_section(config, 0, help)) + "\n"


def _section(config: Any, depth: int, comments: bool) -> list[str]:
    lines: list[str] = []
    schema: type = type(config)
    for member in members(schema).values():
        if comments and member.info.help:
            lines += _comment(member, depth)
        lines += _entry(member.name, getattr(config, member.name), depth, comments)
    return lines


def _entry(name: str, value: Any, depth: int, comments: bool) -> list[str]:
    pad = "  " * depth
    if dataclasses.is_dataclass(value):
        inner = _section(value, depth + 1, comments)
        return [f"{pad}{name}:", *inner] if inner else [f"{pad}{name}: {{}}"]
    if isinstance(value, dict) and value:
        lines = [f"{pad}{name}:"]
        for key, item in value.items():
            lines += _entry(_text(str(key)), item, depth + 1, comments)
        return lines
    if isinstance(value, list) and any(dataclasses.is_dataclass(item) for item in value):
        lines = [f"{pad}{name}:"]
        for item in value:
            inner = _section(item, depth + 2, comments)
            lines += [f"{pad}  -", *inner]
        return lines
    return [f"{pad}{name}: {_scalar(value)}"]


def _comment(member: Member, depth: int) -> list[str]:
    info = member.info
    text = info.help
    if info.choices is not None:
        text += f" ({' | '.join(info.choices)}{' | …' if info.open else ''})"
    lines = wrap(text, 96 - 2 * depth, break_long_words=False, break_on_hyphens=False)
    return [f"{'  ' * depth}# {line}" for line in lines]


def _scalar(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = repr(value)  # YAML 1.1 takes 1e-05 for a text
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, dict):
        pairs = [f"{_text(str(key))}: {_scalar(item)}" for key, item in value.items()]
        return f"{{{', '.join(pairs)}}}"
    return _text(str(value))


def _text(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(each if _printable(each) else _escape(each) for each in quoted)


def _printable(character: str) -> bool:
    """What YAML takes as it is inside double quotes. Line separators would be folded."""
    code = ord(character)
    return (
        0x20 <= code < 0x7F
        or (0xA0 <= code < 0xD800 and code not in (0x2028, 0x2029))
        or (0xE000 <= code < 0xFFFE and code != 0xFEFF)
        or code >= 0x10000
    )


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"
