"""Labelled sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK = (32, 33, 36)
PAPER = (255, 255, 255)
GAP = 8
"""Pixels of white space around each image."""
COLUMN = 24
"""Pixels of a line of headings."""


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a label on the left and images of one size."""

    label: str
    images: Sequence[Image.Image]
    columns: Sequence[str] = ()
    """A heading above each image, for this row and those below it until the next; or none."""


def sheet(
    rows: Sequence[Row],
    *,
    columns: Sequence[str] = (),
    title: str = "",
    tile: int = 160,
) -> Image.Image:
    """A sheet with a title, column headings and labelled rows.

    Args:
        rows: the rows; short ones leave their last places empty.
        columns: headings of the first row, where it has none of its own.
        tile: side of an image on the sheet, in pixels.
    """
    font = ImageFont.load_default(15)
    heading = ImageFont.load_default(22)
    lengths = (font.getlength(line) for row in rows for line in row.label.splitlines())
    label_width = int(max(lengths, default=0)) + 2 * GAP
    width = max((len(row.images) for row in rows), default=0) * (tile + GAP) + label_width + GAP
    heads = [row.columns or (columns if not line else ()) for line, row in enumerate(rows)]
    y = GAP + (36 if title else 0)
    height = y + sum(tile + GAP + (COLUMN if head else 0) for head in heads) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, GAP), title, font=heading, fill=INK)
    for row, head in zip(rows, heads, strict=True):
        for index, text in enumerate(head):
            x = label_width + index * (tile + GAP) + tile // 2
            draw.text((x, y + COLUMN // 2), text, font=font, fill=INK, anchor="mm")
        y += COLUMN if head else 0
        draw.multiline_text(
            (GAP, y + tile // 2), row.label, font=font, fill=INK, anchor="lm", spacing=5
        )
        for index, image in enumerate(row.images):
            resized = image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            page.paste(resized, (label_width + index * (tile + GAP), y))
        y += tile + GAP
    return page
