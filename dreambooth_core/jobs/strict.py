"""JSON from somebody who may mean harm: one reader, with limits. Standard library only."""

from __future__ import annotations

import json
from typing import Any

from dreambooth_core.disk.reading import load_json
from dreambooth_core.errors import UserError

DEEPEST = 32
"""Objects and lists within each other."""

MOST = 100_000
"""Values in all."""

LONGEST = 200_000
"""Characters of a text."""


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
        found = load_json(data.decode("utf-8"), parse_int=_whole)
    except UnicodeDecodeError:
        raise UserError("this is not JSON: not UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"this is not JSON: {error.msg} in line {error.lineno}") from None
    except ValueError as error:
        raise UserError(str(error)) from None
    _limit(found, most, longest)
    return found


def _whole(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**63:
        raise UserError(f"{text[:20]}… is too large a number")
    return int(text)


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
