"""The picture of a run's losses."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageColor

from dreambooth_core.evaluation.curves import (
    BOTTOM,
    COLOURS,
    LEFT,
    RIGHT,
    SIZE,
    TOP,
    _pieces,
    _short,
    loss_chart,
)


def _picture(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_a_curve_is_where_its_values_are() -> None:
    """A constant loss of 1 under a scale that ends at 1.05."""
    image = _picture(loss_chart([1, 50, 100], {"instance": [1.0, 1.0, 1.0]}, [1e-4] * 3))
    assert image.size == SIZE
    y = TOP + (1 - 1 / 1.05) * (SIZE[1] - TOP - BOTTOM)
    middle = (LEFT + SIZE[0] - RIGHT) // 2
    column = [image.getpixel((middle + 3, row)) for row in range(SIZE[1])]
    colour = ImageColor.getrgb(COLOURS[0])
    found = [row for row, pixel in enumerate(column) if pixel == colour]
    assert found and all(abs(row - y) <= 2 for row in found)


def test_each_part_has_its_colour() -> None:
    parts = {"instance": [0.2, 0.1], "class": [0.4, 0.3]}
    image = _picture(loss_chart([1, 2], parts, [1e-4, 0.0]))
    colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert {ImageColor.getrgb(colour) for colour in COLOURS[:2]} <= colours
    assert ImageColor.getrgb(COLOURS[2]) not in colours


@pytest.mark.parametrize(
    ("steps", "losses", "rates"),
    [([7], [1.5], [1e-6]), ([1, 2], [0.0, 0.0], [0.0, 0.0]), ([3, 9_000_000], [1e4, 1e-9], [2, 3])],
)
def test_odd_values_have_a_picture(
    steps: list[int], losses: list[float], rates: list[float]
) -> None:
    assert _picture(loss_chart(steps, {"instance": losses}, rates)).size == SIZE


def test_numbers_are_short() -> None:
    assert [_short(value) for value in (0.0, 5e-6, 1.25e-4, 1.0)] == ["0", "5e-6", "1.25e-4", "1e0"]


def test_dashes_go_on_around_corners() -> None:
    pieces = list(_pieces([(0, 0), (10, 0), (10, 20)], 7, 5))
    assert pieces[0] == [(0, 0), (7, 0)]
    assert pieces[1] == [pytest.approx((10, 2)), pytest.approx((10, 9))]
    assert len(pieces) == 3
