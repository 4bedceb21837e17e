"""How files of others are opened: regular ones only, and JSON within limits. Standard library only.

What is read here was written by somebody else. A pipe would be waited for, a device never ends,
and JSON can be nested, repeated or long enough to fill the memory: each is one clear line.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from dreambooth_core.errors import UserError

MAX_JSON = 32_000_000
"""Bytes of the longest JSON text that is read."""

DIGITS = 300
"""Of a fraction: above this none is finite."""

MAX_BRACKETS = 1_000_000
"""Lists and objects in a JSON text, at most: each takes many times its two letters in memory."""


def regular(path: str | Path) -> int:
    """The size of a regular file in bytes; links are followed.

    Raises:
        UserError: there is none, or it is a folder, a pipe, a socket or a device.
    """
    path = Path(path)
    try:
        facts = path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    _refuse_strange(path, facts.st_mode)
    return facts.st_size


def open_regular(path: str | Path) -> BinaryIO:
    """Opens a regular file to read bytes, without ever waiting for one.

    Raises:
        UserError: as :func:`regular`, or it may not be read.
    """
    path = Path(path)
    regular(path)
    waiting = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | waiting)
        file = os.fdopen(handle, "rb")
    except OSError as error:
        raise unreadable(path, error) from error
    # Looked at again: another may have put a pipe in the file's place.
    mode = os.fstat(file.fileno()).st_mode
    if not stat.S_ISREG(mode):
        file.close()
        _refuse_strange(path, mode)
    return file


def read_bytes(path: str | Path, limit: int) -> bytes:
    """The whole of a regular file that has at most ``limit`` bytes. Raises ``UserError``."""
    size = regular(path)
    if size > limit:
        raise UserError(f"this file is too large: {size:,} bytes, at most {limit:,}", where=path)
    with open_regular(path) as file:
        try:
            return file.read(limit + 1)
        except OSError as error:
            raise unreadable(Path(path), error) from error


def read_json(
    path: str | Path, what: str = "not valid JSON", *, infinite: Collection[str] = ()
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        infinite: keys that may be infinite, as diffusers writes the defaults of some of its
            schedulers: they are left out then.

    Raises:
        UserError: no such file, or what :func:`parse_json` refuses; begins with ``what``.
    """
    data = read_bytes(path, MAX_JSON)
    try:
        return parse_json(data, infinite=infinite)
    except ValueError as error:
        raise UserError(f"{what}: {error}", where=path) from error


def parse_json(
    data: bytes | str, *, limit: int = MAX_JSON, infinite: Collection[str] = ()
) -> dict[str, Any]:
    """The object in a JSON text. A key that occurs twice, a NaN and a lone surrogate are errors:
    readers disagree on what they mean. ``infinite`` as :func:`read_json` has it.

    Raises:
        ValueError: not JSON, no object, or longer, deeper or fuller than any sensible file.
    """
    if len(data) > limit:
        raise ValueError(f"{len(data):,} bytes, at most {limit:,}")
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        if text.count("{") + text.count("[") > MAX_BRACKETS:
            raise ValueError("it has too many lists and objects")
        found = load_json(text.removeprefix("\ufeff"), infinite=infinite)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 (byte {error.start})") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no object")
    if infinite and "Infinity" in text:
        json.dumps(found, default=_left_over)
    if "\\u" in text and "\\ud" in text.lower():
        _refuse_surrogates(found)
    return found


def load_json(
    text: str,
    *,
    parse_int: Callable[[str], Any] | None = None,
    infinite: Collection[str] = (),
) -> Any:
    """What a JSON text says, objects or not; ``infinite`` as :func:`read_json` has it.

    Raises:
        ValueError: not JSON, nested too deeply, a key that occurs twice, what is no number.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=partial(_once, infinite=infinite),
            parse_int=parse_int,
            parse_float=_finite,
            parse_constant=_unless_infinite if infinite else _no_number,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def unreadable(path: Path, error: OSError | ValueError) -> UserError:
    """What a failure to open or read a file is in words."""
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return UserError("no such file", where=path)
    if os.path.isdir(path):  # Path.is_dir raises where a name is too long
        return UserError("this is a folder, not a file", where=path)
    reason = getattr(error, "strerror", None) or error
    return UserError(f"could not read this file ({reason})", where=path)


def _refuse_strange(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    kind = next((name for is_kind, name in kinds if is_kind(mode)), "something else")
    raise UserError(f"this is {kind}, not a file", where=path)


def _once(pairs: list[tuple[str, Any]], infinite: Collection[str] = ()) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} occurs twice")
    for key, value in found.items():
        if value is _INFINITE and key not in infinite:
            raise ValueError(f"{key} is infinite")
    return {key: value for key, value in found.items() if value is not _INFINITE}


_INFINITE = object()


def _left_over(_: object) -> NoReturn:
    raise ValueError("an infinity is in a list")


def _unless_infinite(text: str) -> object:
    return _no_number(text) if text == "NaN" else _INFINITE


def _finite(text: str) -> float:
    value = float(text) if len(text) <= DIGITS else math.inf  # long ones take quadratic time
    return value if math.isfinite(value) else _no_number(text[:20])


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _refuse_surrogates(found: dict[str, Any]) -> None:
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a character (a lone surrogate)") from error
