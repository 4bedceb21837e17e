"""What the values of a configuration may be: ranges that real models lie in, by far.

A rule says in words what it wants, for the message, and tells whether a value is that. Nothing
here knows a model; ``config_rules`` holds the tables.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError


@dataclass(frozen=True)
class Rule:
    """What a value must be."""

    says: str
    """Completes "must be …"."""
    holds: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule(
            f"{self.says} or {other.says}", lambda value: self.holds(value) or other.holds(value)
        )


def whole(low: int, high: int) -> Rule:
    """A whole number of a range."""
    return Rule(
        f"a whole number from {low:,} to {high:,}",
        lambda value: type(value) is int and low <= value <= high,
    )


def number(low: float, high: float) -> Rule:
    """A finite number of a range."""

    def holds(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and low <= value <= high

    return Rule(f"a number from {low:g} to {high:g}", holds)


def one_of(*known: Any) -> Rule:
    """One of these values, told apart by type too: 1 is not true."""

    def holds(value: Any) -> bool:
        return any(type(value) is type(one) and value == one for one in known)

    return Rule(" or ".join(json.dumps(one) for one in known), holds)


def listed(rule: Rule, most: int, least: int = 1) -> Rule:
    """A list of such values."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and least <= len(value) <= most
            and all(rule.holds(one) for one in value)
        )

    return Rule(f"a list of {least} to {most}, each {rule.says}", holds)


FLAG = one_of(True, False)
NOTHING = one_of(None)


def named(*groups: tuple[Rule, str]) -> dict[str, Rule]:
    """The rule of each key, from rules and the keys that each is for, with spaces between."""
    return {key: rule for rule, keys in groups for key in keys.split()}


def check(
    config: Mapping[str, Any],
    rules: Mapping[str, Rule],
    where: str | Path | None,
    *,
    required: tuple[str, ...] = (),
) -> None:
    """Refuses a configuration in which a value is out of its rule.

    Keys without a rule are nobody's business here: no code of this program reads them.

    Raises:
        UserError: names the key and what it must be.
    """
    refuse(_broken(config, rules, required), where)


def _broken(
    config: Mapping[str, Any], rules: Mapping[str, Rule], required: tuple[str, ...]
) -> Iterator[str]:
    yield from (f"{key} is missing from the configuration" for key in required if key not in config)
    for key, rule in rules.items():
        if key in config and not rule.holds(config[key]):
            yield f"{key} is {shown(config[key])}, and must be {rule.says}"


def refuse(faults: Iterable[str], where: str | Path | None) -> None:
    """Raises the first fault as a ``UserError``; those behind it are not looked for."""
    for fault in faults:
        raise UserError(fault, where=where)


def each(value: Any, count: int) -> list[Any]:
    """A value of each level: a list has them all, anything else is that of every one."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def shown(value: Any) -> str:
    """A value for a message, however long it is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**18:
        return "a number of more than 18 digits"
    text = repr(value) if isinstance(value, (str, int, float)) else type(value).__name__
    if isinstance(value, (list, tuple)) and len(value) <= 8:
        text = f"[{', '.join(shown(one) for one in value)}]"
    return {"NoneType": "null", "dict": "an object", "list": "a list"}.get(text, text)[:60]
