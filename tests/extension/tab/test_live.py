"""What the page shows of a run: numbers, curve, pictures; all text escaped."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.config.loading import mark
from dreambooth_core.hosting.curves import smoothed, thinned
from dreambooth_core.options import TrainConfig
from extension.service.types import Events, Marked, Problem, Report, Status
from extension.tab import check, history, html, live
from extension.tab.curve import loss_curve

RUNNING = Status(
    name="my dog",
    state="running",
    path="/runs/my dog",
    stage="train",
    step=120,
    steps=400,
    loss=0.1234,
    best_step=100,
    seconds_per_step=0.25,
    seconds_left=70.0,
    memory_bytes=6_400_000_000,
    started=1000.0,
    method="lora",
    base="/models/v1-5.safetensors",
    host="3.9 GB are free",
)


def progress(step: int, loss: float = 0.1) -> dict[str, Any]:
    return {
        "kind": "progress",
        "stage": "train",
        "step": step,
        "steps": 400,
        "loss": loss,
        "lr": 1e-4,
    }


class Runs:
    """A service with one run, whose events are given."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.all = list(events)
        self.asked: list[int] = []

    def events(self, name: str, offset: int = 0) -> Events:
        self.asked.append(offset)
        return Events(self.all[offset:], len(self.all), replace(RUNNING, name=name))


def test_a_model_that_did_not_come_back_is_told() -> None:
    lent = live.panel(RUNNING, live.Watched(), now=1090.0)
    assert "comes back when training ends" in lent
    trouble = replace(RUNNING, state="finished", host="its model could not be brought back")
    shown = live.panel(trouble, live.Watched(), now=1090.0)
    assert "could not be brought back" in shown
    assert "comes back when training ends" not in shown


def test_the_panel_tells_what_matters() -> None:
    watched = live.Watched()
    for step in (119, 120):
        watched.add(progress(step))
    shown = live.panel(RUNNING, watched, now=1090.0)
    plain = " ".join(re.sub("<[^>]*>", " ", shown).split())
    for words in (
        "my dog running lora · v1-5.safetensors",
        "Training 120 / 400 1:10 remaining",
        "0.1234 Loss",
        "100 Best step",
        "4.0 steps/s Pace",
        "1.00e-04 Learning rate",
        "6.4 GB Memory, peak",
        "1:30 Time",
        "3.9 GB are free",
    ):
        assert words in plain
    assert 'data-live="1"' in shown
    assert "width:30.00%" in shown


def test_what_compiling_took_is_told() -> None:
    assert "Compiling took" not in live.panel(RUNNING, live.Watched(), now=1090.0)
    shown = live.panel(replace(RUNNING, compile_seconds=75.4), live.Watched(), now=1090.0)
    assert "1:15 Compiling took" in " ".join(re.sub("<[^>]*>", " ", shown).split())


def test_names_and_messages_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>"
    status = replace(
        RUNNING, name=evil, message=evil, base=evil, host=evil, method=evil, stage=evil
    )
    watched = live.Watched(warnings=[evil])
    assert "<img" not in live.panel(status, watched)
    assert "<img" not in check.report(Report([Problem("a", evil)]), {"a": evil})
    assert html.div("x", evil, title='"' + evil) == (
        '<div class="x" title="&quot;&lt;img src=x onerror=alert(1)&gt;">'
        "&lt;img src=x onerror=alert(1)&gt;</div>"
    )


def test_events_are_read_once() -> None:
    runs = Runs({"kind": "started", "step": 0, "steps": 400}, progress(1), progress(2))
    watcher = live.Watcher(runs)
    watcher.look("a")
    runs.all.append(progress(3, 0.3))
    _, watched = watcher.look("a")
    assert runs.asked == [0, 3]
    assert watched.points == [(1, 0.1), (2, 0.1), (3, 0.3)]


def test_a_resumed_run_takes_steps_back() -> None:
    watched = live.Watched()
    for event in (progress(1), progress(2, 9.0), {"kind": "started", "step": 1}, progress(2, 0.2)):
        watched.add(event)
    assert watched.points == [(1, 0.1), (2, 0.2)]


def test_another_run_of_the_same_name_begins_anew() -> None:
    runs = Runs(progress(1), progress(2), progress(3))
    watcher = live.Watcher(runs)
    watcher.look("a")
    runs.all = [progress(1, 0.5)]
    assert watcher.look("a")[1].points == [(1, 0.5)]


def test_the_curve_is_drawn_to_scale() -> None:
    drawn = loss_curve([(0, 0.0), (50, 0.5), (100, 1.0)], 200)
    raw = re.search(r'db-raw" points="([^"]*)"', drawn)
    assert raw is not None
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, p.split(","))) for p in raw[1].split()]
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)
    assert x2 == pytest.approx((52 + 640 - 12) / 2)  # half of 200 steps: the middle
    assert loss_curve([], 10) == "" == loss_curve([(1, float("nan"))], 10)


def test_smoothing_keeps_a_constant_and_thinning_the_mean() -> None:
    assert smoothed([0.3] * 50) == pytest.approx([0.3] * 50)
    points = [(float(n), float(n)) for n in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert sum(x for x, _ in few) / 100 == pytest.approx(499.5)


def test_pictures_need_no_route(tmp_path: Path) -> None:
    place = tmp_path / "step-000120-00.png"
    Image.new("RGB", (600, 300), "red").save(place)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    shown = live.pictures([str(tmp_path / "broken.png"), str(place), str(tmp_path / "gone.png")])
    assert shown.count("data:image/jpeg;base64,") == 1
    assert shown.count("db-no-picture") == 2
    assert "<figcaption>120</figcaption>" in shown


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "–"), (59.6, "1:00"), (3909, "1:05:09"), (float("inf"), "–")]
)
def test_durations(seconds: float | None, words: str) -> None:
    assert html.duration(seconds) == words


def test_a_report_says_what_would_run() -> None:
    forecast = {
        "base": "pocket",
        "family_label": "Stable Diffusion 1.x",
        "prediction_type": "epsilon",
        "device": "cpu",
        "precision": "no",
        "steps": 400,
        "steps_per_epoch": 5,
        "trainable": {"unet": 797184},
        "data": {
            "concepts": [
                {"images": {"taken": [{}] * 5, "skipped": [{"name": "a", "reason": "b"}]}}
            ],
            "buckets": {"128x128": 5},
        },
        "captions": {"instance": {"text": "a photo of sks star"}},
        "memory": {"peak": 7.2e9},
        "warnings": ["few pictures"],
    }
    shown = check.report(Report([], forecast, {"run.steps": 400}, 431.0), {"run.steps": "Steps"})
    plain = " ".join(re.sub("<[^>]*>", " ", shown).split())
    for words in ("Images taken 5", "797,184 unet", "7.2 GB", "7:11", "few pictures", "a b"):
        assert words in plain


def test_the_time_of_a_run_like_none_before() -> None:
    forecast = {"memory": {"peak": 7e9, "seconds": 1.5}, "steps": 400}
    on_gpu = check.report(Report([], {**forecast, "device": "cuda"}, {}, None), {})
    assert "10:00" in on_gpu and "at least" in on_gpu
    on_cpu = check.report(Report([], {**forecast, "device": "cpu"}, {}, None), {})
    assert "10:00" not in on_cpu and "Known once" in on_cpu


def test_a_problem_leads_to_its_field() -> None:
    shown = check.report(
        Report([Problem("run.steps", "must be at least 1")]), {"run.steps": "Steps"}
    )
    assert 'data-field="run.steps"' in shown and "<b>Steps</b>" in shown


def test_runs_are_compared_at_the_steps_that_all_have(tmp_path: Path) -> None:
    def run(name: str, steps: range) -> tuple[str, list[str]]:
        paths = [tmp_path / f"{name}-step-{step:06d}-{n:02d}.png" for step in steps for n in (0, 1)]
        return name, [str(path.with_name(path.name.removeprefix(f"{name}-"))) for path in paths]

    def columns(*runs: tuple[str, list[str]]) -> list[list[str]]:
        rows = history.grid(runs).split("<tr>")[1:]
        return [re.findall(r"<figcaption>(\d+)</figcaption>", row) for row in rows]

    assert (
        columns(run("a", range(0, 400, 100)), run("b", range(0, 400, 50)))
        == [["0", "100", "200", "300"]] * 2
    )
    assert columns(run("a", range(0, 1100, 100))) == [["0", "200", "400", "600", "800", "1000"]]
    assert "No samples" in history.grid([("<i>", [])])
    assert "&lt;i&gt;" in history.grid([("<i>", [])])


def test_what_is_wrong_is_told_by_labels() -> None:
    labels = {"run.steps": "Steps", "run.epochs": "Number of epochs", "optim.lr": "Rate"}
    found = [
        Problem("run.steps", "run.steps: 99999999999999 is too large. Set run.epochs, or optim.x"),
        Problem("", "optim.lr needs a value"),
    ]
    plain = re.sub("<[^>]*>", " ", check.report(Report(found), labels))
    assert " ".join(plain.split()) == (
        "Steps 99999999999999 is too large. Set “Number of epochs”, or optim.x “Rate” needs a value"
    )


def test_absurd_steps_are_not_in_order() -> None:
    (line,) = mark(TrainConfig, {"run.steps": 99999999999999}).values()
    assert "too large" in line


def measured(step: int, **numbers: float) -> dict[str, Any]:
    return {"kind": "measured", "step": step, "best": 100, **numbers}


def test_marks_are_counted_in_words() -> None:
    marks = ["good", "good", "bad", ""]
    found = [Marked(f"{n}.png", f"/none/{n}.png", "a dog", 0, mark) for n, mark in enumerate(marks)]
    text = re.sub("<[^>]+>", " ", history.marked(found)).split()
    assert text == ["2", "good", "1", "bad", "good", "good", "bad", "–"]


def test_what_was_measured_is_drawn_with_the_best_step_marked() -> None:
    runs = Runs(
        measured(100, held_out_loss=0.2, likeness=0.5, score=0.4, prompt=float("nan")),
        measured(200, held_out_loss=0.3, likeness=0.6, score=0.3),
    )
    page = live.panel(*live.Watcher(runs).look("dog"), now=0.0)
    loss, images = re.findall(r"<svg.*?</svg>", page)
    assert 'aria-label="held_out_loss"' in loss and 'aria-label="score likeness"' in images
    across = 52 + (640 - 52 - 12) * 100 / 400
    assert loss.count(f'class="db-best" x1="{across:.1f}"') == 1
    assert images.count("<polyline") == 2 and images.count("<circle") == 4
    assert re.findall(r'"db-of db-line-(\d)">([\w -]+)<', page) == [
        ("0", "Held-out loss"),
        ("0", "Score"),
        ("1", "Likeness"),
    ]


def test_a_resumed_run_takes_back_what_was_measured_later() -> None:
    runs = Runs(
        measured(100, score=0.4), measured(200, score=0.3), {"kind": "started", "step": 150}
    )
    _, run = live.Watcher(runs).look("dog")
    assert set(run.measured) == {100}


def test_nothing_measured_is_nothing_drawn() -> None:
    assert "<svg" not in live.panel(*live.Watcher(Runs(measured(100))).look("dog"), now=0.0)
