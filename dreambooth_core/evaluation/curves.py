"""Curves of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

COLOURS = ("#1a73e8", "#e8710a", "#188038")


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those up to ``window - 1`` before it."""
    result: list[float] = []
    total = 0.0
    for index, value in enumerate(values):
        total += value
        if index >= window:
            total -= values[index - window]
        result.append(total / min(index + 1, window))
    return result


def loss_picture(
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    window = max(1, len(steps) // 20)
    for colour, (name, values) in zip(COLOURS, parts.items(), strict=False):
        axes.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
        label = f"{name} (mean of {window} steps)" if window > 1 else name
        axes.plot(steps, smoothed(values, window), color=colour, linewidth=1.8, label=label)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    rates = axes.twinx()
    rates.plot(steps, learning_rates, color="#80868b", linestyle="--", linewidth=1)
    rates.set_ylabel("learning rate", color="#80868b")
    rates.set_ylim(bottom=0)
    axes.legend(loc="upper right")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
