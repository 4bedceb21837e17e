"""Curves of a run as an image, drawn with Pillow: a plotting library takes longer to import."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dreambooth_core.data.decode import encode
from dreambooth_core.hosting.curves import Point, smoothed, ticks

COLOURS = ("#1a73e8", "#e8710a", "#188038")
GREY = "#80868b"
TEXT = "#3c4043"
GRID = "#e8eaed"

SIZE = (990, 495)
SHARPER = 2
"""Drawn that much larger and then scaled down, which smooths the lines."""
LEFT, TOP, RIGHT, BOTTOM = 70, 16, 84, 52
"""Room around the curves for numbers and names."""


def loss_chart(
    steps: Sequence[int],
    parts: Mapping[str, Sequence[float]],
    learning_rates: Sequence[float],
) -> bytes:
    """A PNG of the loss and the learning rate over the steps.

    Args:
        steps: the step of each value.
        parts: named losses, such as ``instance`` and ``class``, one value for each step.
        learning_rates: one value for each step.
    """
    highest = max((value for values in parts.values() for value in values), default=1.0)
    chart = _Chart((steps[0], max(steps[-1], steps[0] + 1)))
    losses = chart.axis(highest, "{:.4g}".format)
    rates = chart.axis(max(learning_rates, default=1.0), _short, right=True)
    chart.frame(losses, rates)
    pairs = list(zip(COLOURS, parts.items(), strict=False))
    for colour, (_, values) in pairs:
        chart.curve(steps, values, losses, _pale(colour), 1.0)
    chart.curve(steps, learning_rates, rates, GREY, 1.2, dashed=True)
    for colour, (_, values) in pairs:
        chart.curve(steps, smoothed(values), losses, colour, 2.2)
    chart.legend([(colour, name) for colour, (name, _) in pairs])
    return chart.png()


@dataclass(frozen=True)
class _Axis:
    """A scale from 0 up to a round number."""

    top: float
    ticks: list[float]
    words: Callable[[float], str]
    right: bool = False


class _Chart:
    """An image with a frame that curves are drawn into. Coordinates are pixels of the result."""

    def __init__(self, steps: tuple[int, int]) -> None:
        self.first, self.last = steps
        self.image = Image.new("RGB", (SIZE[0] * SHARPER, SIZE[1] * SHARPER), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(13 * SHARPER)

    def axis(self, highest: float, words: Callable[[float], str], *, right: bool = False) -> _Axis:
        """A scale that holds values from 0 to ``highest``."""
        marks = ticks(0.0, highest * 1.05 if highest > 0 else 1.0)
        top = max(highest * 1.05, marks[-1]) if highest > 0 else 1.0
        return _Axis(top, marks, words, right)

    def frame(self, losses: _Axis, rates: _Axis) -> None:
        """Grid, numbers and the names of the axes."""
        width, height = SIZE
        bottom = height - BOTTOM
        for step in ticks(self.first, self.last):
            if step != int(step) or not self.first <= step <= self.last:
                continue
            x = self._x(step)
            self._line([(x, TOP), (x, bottom)], GRID, 1)
            self._text((x, bottom + 6), f"{int(step)}", TEXT, "ma")
        for axis, colour in ((losses, TEXT), (rates, GREY)):
            for value in axis.ticks:
                y = self._y(value, axis)
                if axis.right:
                    self._text((width - RIGHT + 7, y), axis.words(value), colour, "lm")
                else:
                    self._line([(LEFT, y), (width - RIGHT, y)], GRID, 1)
                    self._text((LEFT - 7, y), axis.words(value), colour, "rm")
        self._line([(LEFT, TOP), (LEFT, bottom), (width - RIGHT, bottom)], GREY, 1)
        self._line([(width - RIGHT, TOP), (width - RIGHT, bottom)], GREY, 1)
        self._text(((LEFT + width - RIGHT) / 2, height - 8), "step", TEXT, "md")
        self._upright("loss", 6, TEXT)
        self._upright("learning rate", width - 24, GREY)

    def curve(
        self,
        steps: Sequence[int],
        values: Sequence[float],
        axis: _Axis,
        colour: str,
        width: float,
        *,
        dashed: bool = False,
    ) -> None:
        """A line through all values; a dot where there is only one."""
        points = [(self._x(s), self._y(v, axis)) for s, v in zip(steps, values, strict=True)]
        for piece in _pieces(points, 7.0, 5.0) if dashed else [points]:
            self._line(piece, colour, width)

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Colours and their names, in the upper right corner."""
        wide = max(self.draw.textlength(name, self.font) / SHARPER for _, name in entries) + 44
        left, top = SIZE[0] - RIGHT - wide - 8, TOP + 8
        box = [left, top, left + wide, top + 20 * len(entries) + 6]
        self.draw.rounded_rectangle(
            [SHARPER * edge for edge in box], 4 * SHARPER, "white", GRID, SHARPER
        )
        for number, (colour, name) in enumerate(entries):
            y = top + 13 + 20 * number
            self._line([(left + 8, y), (left + 30, y)], colour, 2.2)
            self._text((left + 37, y), name, TEXT, "lm")

    def png(self) -> bytes:
        """The finished image."""
        return encode(self.image.resize(SIZE, Image.Resampling.BOX))

    def _x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return LEFT + share * (SIZE[0] - LEFT - RIGHT)

    def _y(self, value: float, axis: _Axis) -> float:
        return TOP + (1.0 - value / axis.top) * (SIZE[1] - TOP - BOTTOM)

    def _line(self, points: Sequence[Point], colour: str, width: float) -> None:
        large = [(x * SHARPER, y * SHARPER) for x, y in points]
        if len(large) == 1:
            (x, y), radius = large[0], width * SHARPER
            self.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=colour)
            return
        self.draw.line(large, colour, round(width * SHARPER), joint="curve")

    def _text(self, where: Point, text: str, colour: str, anchor: str) -> None:
        place = (where[0] * SHARPER, where[1] * SHARPER)
        self.draw.text(place, text, colour, self.font, anchor)

    def _upright(self, text: str, left: float, colour: str) -> None:
        """A name that reads upwards, in the middle of the chart's height."""
        size = (round(self.draw.textlength(text, self.font)), 18 * SHARPER)
        label = Image.new("RGB", size, "white")
        ImageDraw.Draw(label).text((0, 0), text, colour, self.font)
        label = label.rotate(90, expand=True)
        middle = (TOP + SIZE[1] - BOTTOM) * SHARPER // 2
        self.image.paste(label, (round(left * SHARPER), middle - label.height // 2))


def _pieces(points: Sequence[Point], drawn: float, left_out: float) -> Iterator[list[Point]]:
    """A line cut into dashes of ``drawn`` pixels with ``left_out`` between them."""
    period, travelled = drawn + left_out, 0.0
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        length, at = math.hypot(to_x - x, to_y - y), 0.0
        while at < length:
            phase = (travelled + at) % period
            rest = max((drawn if phase < drawn else period) - phase, 1e-3)
            end = min(at + rest, length)
            if phase < drawn:
                shares = (at / length, end / length)
                yield [(x + (to_x - x) * s, y + (to_y - y) * s) for s in shares]
            at = end
        travelled += length


def _short(value: float) -> str:
    """``5e-6`` for 0.000005."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    if value == 0.0:
        return "0"
    return f"{float(mantissa):g}e{int(exponent)}"


def _pale(colour: str) -> str:
    """A colour as it looks on white where it is nearly transparent."""
    parts = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 - 0.3 * (255 - part)):02x}" for part in parts)
