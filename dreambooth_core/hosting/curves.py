"""What a run's events tell of its loss and of its saved steps, for whoever draws it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MEASURES = ("held_out_loss", "score", "likeness", "prompt", "drift", "diversity")
"""What is measured at a save, by its name in events."""

Point = tuple[float, float]


@dataclass
class Curves:
    """Grows with the events. A resumed run takes back the steps after its checkpoint."""

    steps: int = 0
    """Of the whole run; 0 before that is known."""
    points: list[tuple[int, float]] = field(default_factory=list)
    """(step, loss)."""
    measured: dict[int, dict[str, float]] = field(default_factory=dict)
    """What saved steps were found to be, by step and name."""
    best: int | None = None
    """The best of them so far."""

    def add(self, event: Mapping[str, Any]) -> None:
        """Takes one event into account."""
        kind = event.get("kind")
        if kind == "started":
            self._rewind(int(event.get("step") or 0))
        elif kind == "progress" and event.get("stage", "train") == "train":
            loss = event.get("loss")
            if isinstance(loss, (int, float)) and math.isfinite(loss):
                self._rewind(int(event["step"]) - 1)
                self.points.append((int(event["step"]), float(loss)))
            self.steps = int(event.get("steps") or self.steps)
        elif kind == "measured":
            numbers = {name: event.get(name) for name in MEASURES}
            self.measured[int(event["step"])] = {
                name: float(value)
                for name, value in numbers.items()
                if isinstance(value, (int, float)) and math.isfinite(value)
            }
            best = event.get("best")
            self.best = best if isinstance(best, int) else None

    def _rewind(self, step: int) -> None:
        while self.points and self.points[-1][0] > step:
            self.points.pop()
        for later in [measured for measured in self.measured if measured > step]:
            del self.measured[later]


def smoothed(values: Sequence[float]) -> list[float]:
    """A running average with the bias of its start removed (Adam's correction). Short runs forget
    sooner than by a twentieth at each step."""
    keep = min(0.95, 1 - 1 / max(2.0, len(values) / 6))
    total, weight, result = 0.0, 0.0, []
    for value in values:
        total = keep * total + (1 - keep) * value
        weight = keep * weight + (1 - keep)
        result.append(total / weight)
    return result


def ticks(low: float, high: float, intervals: int = 6, *, around: bool = False) -> list[float]:
    """Round numbers for the marks of an axis: 1, 2 or 5 · 10ⁿ apart, in about so many intervals;
    those between ``low`` and ``high``, or with ``around`` up to the next ones outside."""
    rough = (high - low) / intervals
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if around:
        first, last = math.floor(low / step), math.ceil(high / step)
    else:
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[Point]:
    """At most ``most`` points: means of equal groups."""
    if len(points) <= most:
        return list(points)
    result = []
    for number in range(most):
        group = points[number * len(points) // most : (number + 1) * len(points) // most]
        places, values = zip(*group, strict=True)
        result.append((sum(places) / len(group), sum(values) / len(group)))
    return result
