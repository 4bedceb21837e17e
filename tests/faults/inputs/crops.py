"""Crops' files of every kind: what is no crop is refused wherever images are looked at."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.case import Case, Expected
from tests.faults.inputs._images import draw
from tests.faults.inputs.images import line

GOOD = {"left": 0.1, "top": 0, "right": 0.9, "bottom": 1}

VALUES: tuple[Any, ...] = (
    *(None, True, "", "0.5", -0.1, -1e-9, 1.1, 2, 64, 1e300, -1e300, 10**400, [], [0.5], {}),
    float("nan"),
    float("inf"),
)
"""In the place of one side, each."""

TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "cut": '{"left": 0.1, "top"',
    "null": "null",
    "a number": "0.5",
    "a list": "[0.1, 0, 0.9, 1]",
    "in pixels": '{"left": 10, "top": 0, "right": 60, "bottom": 64}',
    "a side twice": '{"left": 0, "left": 0.1, "top": 0, "right": 1, "bottom": 1}',
    "turned round": '{"left": 0.9, "top": 0, "right": 0.1, "bottom": 1}',
    "without width": '{"left": 0.5, "top": 0, "right": 0.5, "bottom": 1}',
    "a hair": '{"left": 0.5, "top": 0, "right": 0.500001, "bottom": 1}',
    "with more": json.dumps({**GOOD, "angle": 5}),
    "with less": '{"left": 0.1, "top": 0, "right": 0.9}',
    "other names": '{"x": 0.1, "y": 0, "w": 0.8, "h": 1}',
    "deep": "[" * 100_000,
    "deep in a side": '{"left": ' + "[" * 2000,
    "half a character": '{"\\ud800": 1}',
    "binary": b"\xff\xfe\0\1" * 50,
    "zeros": bytes(4096),
    "large": b" " * 2_000_000,
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
}

ODD: dict[str, str | bytes] = {
    "whole": '{"left": 0, "top": 0, "right": 1, "bottom": 1}',
    "in one line": json.dumps(GOOD),
    "with a mark of the order of bytes": b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
    "a hundredth": '{"left": 0.5, "top": 0.5, "right": 0.51, "bottom": 0.51}',
}


def cases() -> Iterator[Case]:
    """All of them."""
    for what, text in ODD.items():
        yield _case(what, _holding(text), expected="accepted")
    for side in GOOD:
        for value in VALUES:
            text = json.dumps({**GOOD, side: value})
            yield _case(f"{side} is {str(value)[:20]}", _holding(text))
    for what, content in TEXTS.items():
        for command in ("check", "train", "crop", "caption"):
            yield _case(what, _holding(content), command)
    for what, make in {
        "a pipe": os.mkfifo,
        "a link to itself": lambda file: file.symlink_to(file.name),
        "a link to a device": lambda file: file.symlink_to("/dev/zero"),
    }.items():
        yield _case(what, make, expected="accepted")  # no file: told as skipped
    for flags in (
        ("--suggest", "--clear"),
        ("--suggest", "--margin", "nan"),
        ("--suggest", "--margin", "-1"),
        ("--suggest", "--least", "1e9"),
        ("--suggest", "--ratio", "0:0"),
        ("--suggest", "--ratio", "1:1e999"),
        ("--suggest", "--ratio", "9" * 5000 + ":1"),
        ("--suggest", "--preview", "/dev/full"),
        ("--suggest", "--preview", "seen.exe"),
    ):
        name = " ".join(flag[:20] for flag in flags)
        yield _case(name, lambda _: None, "crop", *flags)


def _holding(content: str | bytes) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda file: file.write_bytes(data)


def _case(
    name: str,
    write: Callable[[Path], object],
    command: str = "check",
    *more: str,
    expected: Expected = "refused",
) -> Case:
    """``write`` makes the crop's file of one of two images."""

    def make(place: Path) -> Sequence[str]:
        write(draw(place / "images", 2) / "0.png.crop.json")
        if command in ("check", "train"):
            return line(command, *more)
        return [command, "images", *more]

    return Case("crops", f"{command}: {name}", make, expected, may_write="--preview" in more)
