"""The loss, and what the saved steps were found to be, as drawings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dreambooth_core.hosting.curves import Point, smoothed, thinned, ticks

from .html import Html, text

WIDTH, HEIGHT = 640, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 26
MOST_POINTS = 320

LABELS = {
    "held_out_loss": "Held-out loss",
    "score": "Score",
    "likeness": "Likeness",
    "prompt": "Prompt",
    "drift": "Drift",
    "diversity": "Diversity",
}
"""What is measured, by its name in events, as the page calls it."""

DRAWINGS = (("held_out_loss",), ("score", "likeness", "prompt", "drift", "diversity"))
"""What has one scale."""


def loss_curve(points: Sequence[tuple[int, float]], steps: int) -> Html:
    """An SVG of (step, loss) over ``steps`` steps; colours come from the style sheet.

    The thin line is the loss as reported, the thick one its running average.
    """
    real = [(step, loss) for step, loss in points if math.isfinite(loss)]
    if not real:
        return Html("")
    last = max(steps, real[-1][0], 1)
    smooth = smoothed([loss for _, loss in real])
    low, high = _bounds([loss for _, loss in real])
    frame = _Frame(last, low, high)
    raw = thinned(real, MOST_POINTS)
    calm = thinned([(step, value) for (step, _), value in zip(real, smooth, strict=True)], 200)
    parts = [*frame.grid(), frame.line(raw, "db-raw"), frame.line(calm, "db-calm")]
    parts.append(frame.dot(real[-1][0], smooth[-1], "db-now"))
    return _drawing("loss", parts)


def measured_curves(
    measured: Mapping[int, Mapping[str, float]], steps: int, best: int | None
) -> list[tuple[Html, list[tuple[str, str]]]]:
    """What the saved steps were found to be: an SVG for the held-out loss and one for what the
    images show, as far as there is one, each with its lines' classes and names. The best step has
    a line of its own.

    Args:
        measured: by step and name, as the events tell it.
        steps: of the whole run.
        best: the best of them, if that is known.
    """
    drawn = []
    for names in DRAWINGS:
        lines = {
            name: [(step, row[name]) for step, row in sorted(measured.items()) if name in row]
            for name in names
        }
        lines = {name: points for name, points in lines.items() if points}
        if not lines:
            continue
        values = [value for points in lines.values() for _, value in points]
        frame = _Frame(max(steps, *measured, 1), min(0.0, *values), max(0.01, *values))
        parts = frame.grid()
        if best is not None:
            parts.append(frame.mark(best))
        legend = []
        for number, (name, points) in enumerate(lines.items()):
            cls = f"db-line-{number}"
            parts.append(frame.line(points, cls))
            parts += [frame.dot(*point, cls) for point in points]
            legend.append((cls, LABELS[name]))
        drawn.append((_drawing(" ".join(lines), parts), legend))
    return drawn


def _drawing(label: str, parts: Sequence[str]) -> Html:
    return Html(
        f'<svg class="db-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    """What the axis shows: all but the few highest peaks."""
    ordered = sorted(values)
    high = ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)]
    low = min(0.0, ordered[0])
    return low, high if high > low else low + 1.0


class _Frame:
    """Where things are on the drawing."""

    def __init__(self, last: int, low: float, high: float) -> None:
        self.ticks = ticks(low, high, 4, around=True)
        self.low, self.high, self.last = self.ticks[0], self.ticks[-1], last

    def at(self, step: float, loss: float) -> Point:
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        share = (min(loss, self.high) - self.low) / (self.high - self.low)
        return LEFT + wide * step / self.last, TOP + tall * (1 - share)

    def line(self, points: Sequence[Point], cls: str) -> str:
        where = " ".join("{:.1f},{:.1f}".format(*self.at(*point)) for point in points)
        return f'<polyline class="{cls}" points="{where}"/>'

    def dot(self, step: float, value: float, cls: str) -> str:
        x, y = self.at(step, value)
        return f'<circle class="{cls}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'

    def mark(self, step: float) -> str:
        """A line from top to bottom."""
        x = self.at(step, 0)[0]
        return (
            f'<line class="db-best" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )

    def grid(self) -> list[str]:
        parts = []
        digits = max(0, -math.floor(math.log10(self.ticks[1] - self.ticks[0]) + 1e-9))
        for tick in self.ticks:
            y = self.at(0, tick)[1]
            across = f'x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            parts.append(
                f'<line class="db-grid" {across}/>'
                f'<text class="db-axis" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{tick:.{digits}f}</text>"
            )
        for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
            x = self.at(share * self.last, 0)[0]
            parts.append(
                f'<text class="db-axis" x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
                f"{text(round(share * self.last))}</text>"
            )
        return parts
