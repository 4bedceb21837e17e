"""Labelled sheets of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

INK = (32, 33, 36)
PAPER = (255, 255, 255)
GAP = 8
"""Pixels of white space around each image."""


@dataclass(frozen=True)
class Row:
    """One line of a sheet: a label on the left and images of one size."""

    label: str
    images: Sequence[Image.Image]


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
        columns: a heading for each column, or none.
        tile: side of an image on the sheet, in pixels.
    """
    font = ImageFont.load_default(15)
    heading = ImageFont.load_default(22)
    lengths = (font.getlength(line) for row in rows for line in row.label.splitlines())
    label_width = int(max(lengths, default=0)) + 2 * GAP
    width = max((len(row.images) for row in rows), default=0) * (tile + GAP) + label_width + GAP
    top = GAP + (36 if title else 0)
    column_height = 24 if columns else 0
    height = top + column_height + len(rows) * (tile + GAP) + GAP
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        draw.text((GAP, GAP), title, font=heading, fill=INK)
    for index, text in enumerate(columns):
        x = label_width + index * (tile + GAP) + tile // 2
        draw.text((x, top + column_height // 2), text, font=font, fill=INK, anchor="mm")
    for line, row in enumerate(rows):
        y = top + column_height + line * (tile + GAP)
        draw.multiline_text(
            (GAP, y + tile // 2), row.label, font=font, fill=INK, anchor="lm", spacing=5
        )
        for index, image in enumerate(row.images):
            resized = image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            page.paste(resized, (label_width + index * (tile + GAP), y))
    return page
