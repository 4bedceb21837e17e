"""JSON of strangers."""

from __future__ import annotations

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.jobs.strict import parse_json


def test_ordinary_json() -> None:
    assert parse_json(b'{"a": [1, -2.5e3, "\\u00e9", null, true]}', largest=100) == {
        "a": [1, -2500.0, "é", None, True]
    }


WRONG = {
    "cut": (b'{"a": ', "not JSON"),
    "empty": (b"", "not JSON"),
    "encoding": (b'{"a": "\xff"}', "not UTF-8"),
    "utf-16": ('"a"'.encode("utf-16"), "not UTF-8"),
    "no object": (b"[1]", "no object"),
    "nan": (b'{"a": NaN}', "NaN is not a number"),
    "infinity": (b'{"a": -Infinity}', "-Infinity is not a number"),
    "overflow": (b'{"a": 1e999}', "not a number"),
    "whole": (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    "64 bits": (b'{"a": 9223372036854775808}', "too large"),
    "twice": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "surrogate": (b'{"a": "\\ud800"}', "half a character"),
    "surrogate in a key": (b'{"\\ud800": 1}', "half a character"),
    "deep": (b'{"a": ' + b"[" * 50 + b"]" * 50 + b"}", "too deeply"),
    "very deep": (b'{"a": ' + b"[" * 9000 + b"]" * 9000 + b"}", "too deeply"),
    "many": (b'{"a": [' + b"1," * 2000 + b"1]}", "more than 1,000 values"),
    "long": (b'{"a": "' + b"a" * 2000 + b'"}', "more than 1,000 characters"),
    "large": (b" " * 30000, "at most 20,000"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name: str) -> None:
    data, words = WRONG[name]
    with pytest.raises(UserError, match=words):
        parse_json(data, largest=20_000, most=1000, longest=1000)
