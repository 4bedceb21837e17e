"""Outlines of the shapes as polygons in a unit circle, y pointing down."""

from __future__ import annotations

import math

Point = tuple[float, float]


def _polar(radius: float, degrees: float) -> Point:
    angle = math.radians(degrees)
    return radius * math.cos(angle), radius * math.sin(angle)


def star(arms: int = 5, rounded: bool = False) -> list[Point]:
    """A star with one arm up; pointed, or with fat round arms like a starfish."""
    if not rounded:
        inner = 0.50 if arms <= 5 else 0.58
        step = 180.0 / arms
        return [_polar(inner if k % 2 else 1.0, -90 + k * step) for k in range(2 * arms)]
    points = []
    for k in range(120):
        angle = 3.0 * k
        wave = math.cos(math.radians(angle) * arms)
        points.append(_polar(0.77 + 0.23 * math.copysign(abs(wave) ** 0.8, wave), angle - 90))
    return points


def _heart() -> list[Point]:
    points = []
    for k in range(60):
        t = math.radians(6 * k)
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17.0, -(y + 2.0) / 16.5))
    return points


def _moon() -> list[Point]:
    outer = [_polar(1.0, a) for a in range(50, 311, 5)]
    tip = outer[0]
    centre_x = 0.42
    radius = math.hypot(tip[0] - centre_x, tip[1])
    start = math.degrees(math.atan2(-tip[1], tip[0] - centre_x)) % 360
    end = math.degrees(math.atan2(tip[1], tip[0] - centre_x)) % 360
    count = 40
    inner = []
    for k in range(1, count):
        x, y = _polar(radius, start + (end - start) * k / count)
        inner.append((x + centre_x, y))
    return [(x + 0.28, y) for x, y in outer + inner]


def _cross() -> list[Point]:
    a, b = 0.34, 0.95
    return [
        (-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a),
        (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a),
    ]  # fmt: skip


_FIXED: dict[str, list[Point]] = {
    "circle": [_polar(0.92, 6.0 * k) for k in range(60)],
    "square": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "triangle": [(0.0, -0.98), (0.95, 0.75), (-0.95, 0.75)],
    "heart": _heart(),
    "diamond": [(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)],
    "cross": _cross(),
    "moon": _moon(),
}

# Where a face sits, and the radius it may take.
FACES: dict[str, tuple[float, float, float]] = {
    "circle": (0.0, 0.0, 0.62),
    "square": (0.0, 0.0, 0.60),
    "triangle": (0.0, 0.22, 0.46),
    "star": (0.0, 0.02, 0.48),
    "heart": (0.0, -0.12, 0.55),
    "diamond": (0.0, 0.0, 0.48),
    "cross": (0.0, 0.0, 0.42),
    "moon": (-0.42, 0.0, 0.34),
}


def outline(shape: str, arms: int = 5, rounded: bool = False) -> list[Point]:
    """The polygon of a shape; ``arms`` and ``rounded`` apply to stars."""
    return star(arms, rounded) if shape == "star" else _FIXED[shape]
