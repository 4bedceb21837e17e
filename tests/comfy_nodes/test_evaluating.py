"""Evaluate: what the engine is asked, and what is read from its report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from comfy_nodes import engine
from comfy_nodes.evaluating import best_step
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder


def judged(label: str, step: int | None, likeness: float | None, best: bool = False) -> Any:
    measures = {} if likeness is None else {"subject": {"value": likeness}}
    return {
        "label": label, "step": step, "measures": measures, "best": best, "held_out_loss": None
    }  # fmt: skip


@pytest.fixture
def asked(host: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A helper process that judges at once, and what happened to it."""
    seen: list[Any] = []
    Image.new("RGB", (30, 20), "red").save(tmp_path / "grid.png")

    class Helper:
        def __init__(self, root: Path, *, gpu: bool) -> None:
            seen.append(gpu)

        def task(self, name: str, options: dict[str, Any], **_: Any) -> dict[str, Any]:
            prompts = options.get("prompts")
            seen.extend([name, options, prompts and json.loads(prompts.read_text())])
            return {
                "notes": ["a note"],
                "names": {"subject": "Subject", "held_out_loss": "Held-out loss"},
                "models": [judged("base", None, 0.9), judged("a", 2, 0.7), judged("b", 4, 0.6)],
                "files": {"html": "/report.html", "png": str(tmp_path / "grid.png")},
            }

        def close(self) -> None:
            seen.append("closed")

    monkeypatch.setattr(engine, "Helper", Helper)
    RunFolder.create(host.output / "dreambooth", "dog").config.write_text("{}")
    return seen


def test_a_run_is_judged_on_the_gpu(run: Any, host: Any, asked: list[Any]) -> None:
    grid, best, report = run(
        "DreamBoothEvaluate", run="dog", kind="living", saves=True, prompts="{} on white\n\n"
    )
    gpu, name, options, prompts, closed = asked
    assert (gpu, name, closed, host.freed) == (True, "evaluate", "closed", 1)
    assert prompts == ["{} on white"] and options["runs"] == [str(host.output / "dreambooth/dog")]
    assert options["kind"] == "living" and options["saves"] is True and options["steps"] is None
    assert (grid.shape, best, report) == ((1, 20, 30, 3), 2, "/report.html")
    assert run.lines == [
        "a note",
        "Subject: base 0.900, a 0.700, b 0.600",
        "best step: 2",
        "saved as /report.html",
    ]


def test_the_subjects_place_must_be_named(run: Any, asked: list[Any]) -> None:
    with pytest.raises(UserError, match="where the subject stands"):
        run("DreamBoothEvaluate", run="dog", prompts="a star on white")
    assert not asked


def test_what_held_out_images_say_counts_more_than_likeness() -> None:
    models = [judged("base", None, None), judged("a", 2, 0.7), judged("b", 4, 0.6, best=True)]
    assert best_step({"models": models}) == 4
    assert best_step({"models": [judged("a", 2, None), judged("b", 4, None)]}) == 4
