"""What a control shows, and what the engine takes: the way there and back, without gradio.

A field is described by ``dreambooth_core.config.describe``; values go by their dotted keys.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Spec = Mapping[str, Any]
"""One field as ``describe`` gives it."""

NUMBERS = ("int", "float")


@dataclass(frozen=True)
class Wrong:
    """A value that cannot be, at its field."""

    key: str
    label: str
    message: str


def element_id(key: str) -> str:
    """The id of a field's control in the page: ``concepts[0].images`` has an ordinary one too."""
    return "dreambooth_field_" + re.sub(r"\W+", "_", key).strip("_")


def help_of(spec: Spec) -> str:
    """The help text with unit and, where the control does not enforce it, the range."""
    words = str(spec["help"]).strip()
    unit = spec.get("unit")
    return f"{words} ({unit})" if unit else words


def kind_of(spec: Spec) -> str:
    """The control for a field: checkbox, dropdown, slider, number, lines, text."""
    if spec["type"] == "bool":
        return "checkbox"
    if spec["choices"]:
        return "dropdown"
    if spec["type"] in ("list", "dict"):
        return "lines"
    if spec["type"] in NUMBERS and not spec["optional"]:
        if slider_step(spec) is not None:
            return "slider"
        return "number" if spec["type"] == "int" else "text"
    return "text"


def slider_step(spec: Spec) -> float | None:
    """The step of a slider for this field; None if a slider would be too coarse or too long."""
    low, high, default = spec["minimum"], spec["maximum"], spec.get("default")
    if low is None or high is None or spec["type"] not in NUMBERS:
        return None
    width = high - low
    step = 1.0 if spec["type"] == "int" else 0.01 if width <= 2 else 0.5
    if not 2 <= width / step <= 200:
        return None
    if default is not None and abs((default - low) / step - round((default - low) / step)) > 1e-6:
        return None
    return int(step) if spec["type"] == "int" else step


def to_control(spec: Spec, value: Any) -> Any:
    """What the field's control shows for a value of the configuration."""
    kind = kind_of(spec)
    if kind == "lines":
        if isinstance(value, Mapping):
            return "\n".join(f"{name}: {each}" for name, each in value.items())
        return "\n".join(str(each) for each in value or ())
    if kind != "text":
        return value
    if value is None:
        return ""
    return _number_text(value) if isinstance(value, float) else str(value)


def from_control(spec: Spec, shown: Any) -> Any:
    """The value that a control stands for; its range is the engine's to check.

    Raises:
        ValueError: it is none of the field's type; a few words that say why.
    """
    value: Any
    if spec["type"] in NUMBERS:
        value = _number(spec, shown)
    elif spec["type"] == "list":
        value = [line.strip() for line in str(shown or "").splitlines() if line.strip()]
    elif spec["type"] == "dict":
        value = _pairs(str(shown or ""))
    elif spec["type"] == "bool":
        value = bool(shown)
    else:
        words = "" if shown is None else str(shown).strip()
        value = None if spec["optional"] and not words else words
    return value


def read(specs: Mapping[str, Spec], shown: Mapping[str, Any]) -> tuple[dict[str, Any], list[Wrong]]:
    """The values behind all controls by key, and what is wrong with the others."""
    values: dict[str, Any] = {}
    wrong: list[Wrong] = []
    for key, what in shown.items():
        try:
            values[key] = from_control(specs[key], what)
        except ValueError as error:
            wrong.append(Wrong(key, str(specs[key]["label"]), str(error)))
    return values, wrong


def changed(
    specs: Mapping[str, Spec], values: Mapping[str, Any], presets: Mapping[str, Any]
) -> dict[str, Any]:
    """Only what differs from the presets and, below them, from the engine's defaults."""
    return {
        key: value
        for key, value in values.items()
        if not _same(value, presets.get(key, specs[key].get("default")))
    }


def overlay(
    shown: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, Any]:
    """New values of controls when a preset replaces another.

    Args:
        shown: what the controls show now.
        before: what the old preset made them show.
        after: what the new one asks for.

    Returns:
        What is to be shown instead: nothing for what stays, so that nothing that is typed
        meanwhile is overwritten; and what was changed by hand since ``before`` stays.
    """
    return {
        key: after[key]
        for key, value in shown.items()
        if key in after and _same(value, before.get(key, value)) and not _same(value, after[key])
    }


def field_of(line: str, keys: Iterable[str]) -> str | None:
    """The field that an error's line is about: the first key that it names, the longest there."""
    best: tuple[int, int] | None = None
    found = None
    for key in keys:
        match = re.search(rf"(?<![\w.\]]){re.escape(key)}(?![\w\[])", line)
        if match and (best is None or (match.start(), -len(key)) < best):
            best, found = (match.start(), -len(key)), key
    return found


_KEY = re.compile(r"[a-z_]+(?:\[\d*\])?(?:\.[a-z_0-9]+)+")


def in_words(line: str, labels: Mapping[str, str], own: str | None = None) -> str:
    """An error's line with the fields' labels in place of their keys.

    Args:
        line: as the engine wrote it.
        labels: by key.
        own: the key of the field that the line stands at: it is not said again.
    """
    if own:
        line = line.replace(f"{own}: ", "", 1)
    return _KEY.sub(lambda key: f"“{labels[key[0]]}”" if labels.get(key[0]) else key[0], line)


def _number(spec: Spec, shown: Any) -> int | float | None:
    words = "" if shown is None else str(shown).strip()
    if not words:
        if spec["optional"]:
            return None
        raise ValueError("needs a number")
    try:
        value = float(words.replace(",", ".") if words.count(",") == 1 else words)
    except ValueError:
        raise ValueError(f"is {words!r}, which is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"is {words!r}, which is not a number")
    if spec["type"] == "int":
        if value != int(value):
            raise ValueError("must be a whole number")
        return int(value)
    return value


def _pairs(lines: str) -> dict[str, str]:
    result = {}
    for line in filter(None, (each.strip() for each in lines.splitlines())):
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError('takes lines such as "name: value"')
        result[name.strip()] = value.strip()
    return result


def _number_text(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    return re.sub(r"e([+-])0+", r"e\1", f"{value:g}")


def _same(one: Any, other: Any) -> bool:
    """Equal as controls show them: a slider gives 1 for 1.0, an empty box "" or nothing."""
    if one in (None, "") and other in (None, ""):
        return True
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return bool(one == other)
