"""Curves out of a run's events, for the tab and the nodes."""

from __future__ import annotations

import pytest

from dreambooth_core.hosting.curves import Curves, ticks


def test_curves_grow_and_a_resumed_run_takes_steps_back() -> None:
    curves = Curves()
    for step in (1, 2, 3):
        curves.add({"kind": "progress", "step": step, "steps": 9, "loss": 1 / step})
    curves.add({"kind": "progress", "stage": "samples", "step": 1, "steps": 4, "loss": 7})
    curves.add({"kind": "measured", "step": 2, "score": 0.5, "prompt": None, "best": 2})
    curves.add({"kind": "measured", "step": 3, "score": float("nan"), "best": None})
    assert (curves.points, curves.steps) == ([(1, 1.0), (2, 0.5), (3, 1 / 3)], 9)
    assert (curves.measured, curves.best) == ({2: {"score": 0.5}, 3: {}}, None)
    curves.add({"kind": "started", "step": 1})
    assert (curves.points, curves.measured) == ([(1, 1.0)], {})


def test_numbers_on_an_axis_are_round() -> None:
    assert ticks(0.0, 0.27) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2, 0.25])
    assert ticks(1, 800) == [200, 400, 600, 800]
    assert ticks(-0.1, 0.93, 4, around=True) == pytest.approx([-0.5, 0.0, 0.5, 1.0])
