"""The page of all options says what the dataclasses say today."""

from __future__ import annotations

from tools.reference import PAGE, page


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tools.reference"


def test_every_section_and_its_ranges_are_there() -> None:
    text = page()
    assert "### optim.ema" in text
    assert "| `clip_skip` | `1` | whole number 1 to 12 |" in text
