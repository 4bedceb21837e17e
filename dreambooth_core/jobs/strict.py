"""JSON from somebody who may mean harm: one reader, with limits. Standard library only."""

from __future__ import annotations

from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.formats import reading

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
    deepest: int = DEEPEST,
    most: int = MOST,
    longest: int = LONGEST,
) -> dict[str, Any]:
    """The object in a JSON text, read as files are (:mod:`dreambooth_core.formats.reading`).

    Refused besides: whole numbers that no 64 bits hold, and what is over the limits.

    Args:
        data: UTF-8.
        largest: bytes.
        deepest: objects and lists within each other.
        most: values in all.
        longest: characters of a text.

    Raises:
        UserError: it is none of that kind.
    """
    try:
        found = reading.parse_json(data, limit=largest)
    except ValueError as error:
        raise UserError(f"this is not JSON: {str(error)[:200]}") from None
    _limit(found, deepest, most, longest)
    return found


def _limit(found: Any, deepest: int, most: int, longest: int) -> None:
    """Without recursion: Python's own limit depends on who calls."""
    count = 0
    waiting: list[tuple[Any, int]] = [(found, 1)]
    while waiting:
        value, depth = waiting.pop()
        count += 1
        if count > most:
            raise UserError(f"more than {most:,} values", do="Send fewer.")
        if isinstance(value, str) and len(value) > longest:
            raise UserError(f"a text of more than {longest:,} characters", do="Send a shorter one.")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise UserError(f"{str(value)[:20]}… is too large a number")
        if isinstance(value, (dict, list)):
            if depth > deepest:
                raise UserError("objects and lists are nested too deeply")
            if isinstance(value, dict):
                waiting += [(name, depth) for name in value]
            inner = value.values() if isinstance(value, dict) else value
            waiting += [(each, depth + 1) for each in inner]
