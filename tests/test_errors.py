"""Messages are one line that a terminal can show, whatever a file says."""

from __future__ import annotations

from dreambooth_core.errors import UserError


def test_what_a_file_says_does_not_reach_the_terminal_raw() -> None:
    error = UserError("no tensor 'a\n\x1b[31m\u202eb\ud800'", where="a\tb", do="Look")
    assert error.line == r"a b: no tensor 'a \x1b[31m\u202eb\ud800'. Look"
    error.line.encode("utf-8")


def test_a_long_name_keeps_its_ends() -> None:
    line = UserError(f"no tensor {'x' * 10_000} here").line
    assert len(line) < 420 and line.startswith("no tensor x") and line.endswith("x here")
