"""The table of options and their tests says what the dataclasses and the tests say today."""

from __future__ import annotations

from tools.tested_options import BEGIN, PAGE, page


def test_the_page_is_up_to_date() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert BEGIN in text
    assert text == page(text), "run: python -m tools.tested_options"


def test_every_option_has_a_row() -> None:
    text = page("")
    assert "| `optim.ema.decay` | EMA decay | `tests/trainer/test_options_of_learning.py::" in text
    assert "| `concepts[].repeats` |" in text
    assert text.count("| `tests/") > 140
