"""JSON from somebody who may mean harm: one reader, with limits. Standard library only."""

from __future__ import annotations

import json
import math
from typing import Any

from dreambooth_core.errors import UserError

DEEPEST = 32
"""Objects and lists within each other."""

MOST = 100_000
"""Values in all."""

LONGEST = 200_000
"""Characters of a text."""

DIGITS = 300
"""Of a number: above this no float is finite, and reading whole numbers takes quadratic time."""


def parse_json(
    data: bytes,
    *,
    largest: int,
    most: int = MOST,
    longest: int = LONGEST,
) -> Any:
    """What JSON text says.

    Refused besides what is not JSON: ``NaN`` and infinity, a key that is there twice, numbers
    that no 64 bits hold, halves of characters (lone surrogates), and what is over the limits.

    Args:
        data: UTF-8.
        largest: bytes.
        most: values in all.
        longest: characters of a text.

    Raises:
        UserError: it is none of that kind.
    """
    if len(data) > largest:
        raise UserError(f"more than {largest:,} bytes", do="Send less.")
    try:
        text = data.decode("utf-8")
        found = json.loads(
            text,
            parse_constant=_constant,
            parse_float=_fraction,
            parse_int=_whole,
            object_pairs_hook=_object,
        )
    except UserError:
        raise
    except RecursionError:
        raise UserError("objects and lists are nested too deeply") from None
    except ValueError as error:
        reason = getattr(error, "msg", None) or "not UTF-8"
        line = getattr(error, "lineno", None)
        place = f" in line {line}" if line else ""
        raise UserError(f"this is not JSON: {str(reason)[:100]}{place}") from None
    _limit(found, most, longest)
    return found


def _constant(name: str) -> Any:
    raise UserError(f"{name} is not a number")


def _fraction(text: str) -> float:
    value = float(text) if len(text) <= DIGITS else math.inf
    if not math.isfinite(value):
        raise UserError(f"{text[:20]}… is too large a number")
    return value


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise UserError(f"{text[:20]}… is too large a number")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{twice[:60]!r} is there twice")
    return found


def _limit(found: Any, most: int, longest: int) -> None:
    """Without recursion: Python's own limit depends on who calls."""
    count = 0
    waiting: list[tuple[Any, int]] = [(found, 1)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > most:
            raise UserError(f"more than {most:,} values", do="Send fewer.")
        if isinstance(value, str):
            _text(value, longest)
        elif isinstance(value, (dict, list)):
            if depth > DEEPEST:
                raise UserError("objects and lists are nested too deeply")
            if isinstance(value, dict):
                waiting += [(name, depth) for name in value]
            inner = value.values() if isinstance(value, dict) else value
            waiting += [(each, depth + 1) for each in inner]


def _text(text: str, longest: int) -> None:
    if len(text) > longest:
        raise UserError(f"a text of more than {longest:,} characters", do="Send a shorter one.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("a text holds half a character (a lone surrogate)") from None
