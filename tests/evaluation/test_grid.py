"""Sheets of images: headings stand above the rows that they are of."""

from __future__ import annotations

from PIL import Image

from dreambooth_core.evaluation.grid import COLUMN, GAP, PAPER, Row, sheet

TILE = 40


def inked(page: Image.Image, top: int, height: int) -> bool:
    """Whether anything is written between two rows."""
    strip = page.crop((0, top, page.width, top + height))
    return strip.getcolors() != [(strip.width * strip.height, PAPER)]


def test_headings_stand_above_the_row_that_they_are_of() -> None:
    images = [Image.new("RGB", (8, 8), "red")] * 2
    rows = [Row("a", images), Row("b", images, columns=["left", "right"]), Row("c", images)]
    page = sheet(rows, tile=TILE)
    assert page.height == 2 * GAP + 3 * (TILE + GAP) + COLUMN
    above = GAP + TILE + GAP
    assert inked(page, above, COLUMN) and not inked(page, 0, GAP)


def test_headings_of_the_sheet_are_those_of_its_first_row() -> None:
    rows = [Row("a", [Image.new("RGB", (8, 8), "red")])]
    page, bare = sheet(rows, columns=["only"], tile=TILE), sheet(rows, tile=TILE)
    assert page.height == bare.height + COLUMN
    assert inked(page, GAP, COLUMN)
