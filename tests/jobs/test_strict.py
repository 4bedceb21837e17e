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
    "encoding": (b'"\xff"', "not UTF-8"),
    "utf-16": ('"a"'.encode("utf-16"), "not UTF-8"),
    "nan": (b"[NaN]", "NaN is not a number"),
    "infinity": (b"[-Infinity]", "-Infinity is not a number"),
    "overflow": (b"[1e999]", "1e999 is not a number"),
    "whole": (b"[" + b"9" * 5000 + b"]", "too large"),
    "long fraction": (b"[1." + b"9" * 5000 + b"]", "is not a number"),
    "64 bits": (b"[9223372036854775808]", "too large"),
    "twice": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "surrogate": (b'"\\ud800"', "half a character"),
    "surrogate in a key": (b'{"\\ud800": 1}', "half a character"),
    "deep": (b"[" * 50 + b"]" * 50, "too deeply"),
    "very deep": (b"[" * 9000 + b"]" * 9000, "too deeply"),
    "many": (b"[" + b"1," * 2000 + b"1]", "more than 1,000 values"),
    "long": (b'"' + b"a" * 2000 + b'"', "more than 1,000 characters"),
    "large": (b" " * 30000, "more than 20,000 bytes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_refused(name: str) -> None:
    data, words = WRONG[name]
    with pytest.raises(UserError, match=words):
        parse_json(data, largest=20_000, most=1000, longest=1000)
