"""What is read from a run's folder, alive or long over."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import FileLock, RunFolder, find_run, list_runs, status


def finish(run: RunFolder, **details: object) -> None:
    run.control.mark_start(run.events.size())
    run.events.write("started", step=0, steps=10)
    run.events.write("progress", step=10, steps=10, loss=0.5)
    for name in ("a.safetensors", "b.txt"):
        (run.path / name).write_text("")
    run.events.write("saved", path="a.safetensors", step=10, result=True)
    run.events.write("saved", path="checkpoints/10", step=10)
    run.events.write("sample", path="samples/1.png", step=10, prompt="x")
    run.events.write("warning", message="careful")
    run.events.write("finished", **(details or {"outcome": "done", "results": ["b.txt"]}))


def test_every_ending_has_its_state(run: RunFolder) -> None:
    finish(run)
    summary = status(run)
    assert summary.state == "finished"
    assert summary.results == ["a.safetensors", "b.txt"]
    assert (summary.samples, summary.warnings) == (["samples/1.png"], 1)
    assert json.loads(json.dumps(summary.as_dict()))["loss"] == 0.5
    run.events.write("finished", outcome="stopped", message="as asked")
    assert (status(run).state, status(run).message) == ("stopped", "as asked")
    run.events.write("error", message="no memory")
    assert (status(run).state, status(run).message) == ("failed", "no memory")
    (run.path / "a.safetensors").unlink()
    assert status(run).results == ["b.txt"]
    with run.lock:
        assert status(run).state == "running"
        assert status(run).ended is None
    run.events.write("started", step=4, steps=10)
    summary = status(run)
    assert (summary.state, summary.step) == ("lost", 4)


def test_preparations_are_no_training_steps(run: RunFolder) -> None:
    run.events.write("progress", stage="class_images", step=3, steps=100)
    summary = status(run)
    assert (summary.stage, summary.stage_step, summary.stage_steps) == ("class_images", 3, 100)
    assert (summary.step, summary.steps) == (0, 0)
    run.events.write("started", step=5, steps=20)
    run.events.write("progress", stage="train", step=6, steps=20, loss=1)
    run.events.write("progress", stage="latents", step=1, steps=2)
    summary = status(run)
    assert (summary.stage, summary.step, summary.steps) == ("latents", 6, 20)


def test_the_stage_is_what_is_done_now(run: RunFolder) -> None:
    run.events.write("progress", stage="loading")
    assert status(run).stage == "loading"
    run.events.write("progress", stage="texts", step=2, steps=2)
    assert status(run).stage == "texts"
    run.events.write("started", step=0, steps=20)
    assert status(run).stage == "train"
    run.events.write("progress", stage="samples", step=0, steps=2)
    assert status(run).stage == "samples"
    run.events.write("progress", stage="samples", step=2, steps=2)
    assert status(run).stage == "train", "not until the next step tells of itself"
    run.events.write("finished", outcome="stopped")
    run.control.mark_start(run.events.size())
    assert (status(run).state, status(run).stage) == ("waiting", "starting")


def test_a_start_without_a_word_waits_a_while(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(run)
    run.control.mark_start(run.events.size())
    assert status(run).state == "waiting"
    later = time.time() + 1000
    monkeypatch.setattr(time, "time", lambda: later)
    assert status(run).state == "lost"
    assert "did not come up" in status(run).message
    run.events.write("started", step=1, steps=10)
    with run.lock:
        assert status(run).state == "running"


def test_the_end_of_an_earlier_worker_may_be_noted_late(run: RunFolder) -> None:
    first = run.control.mark_start(run.events.size())
    run.events.write("finished", outcome="done")
    second = run.control.mark_start(run.events.size())
    run.control.mark_exited(first, 0)
    assert status(run).state == "waiting"
    run.control.mark_exited(second, 3)
    assert status(run).state == "lost"
    assert "code 3" in status(run).message


def test_a_worker_that_comes_up_just_now_is_not_lost(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, True])
    monkeypatch.setattr(FileLock, "is_held", lambda _: next(looks))
    run.events.write("started", steps=3)
    assert status(run).state == "running"


def test_a_run_of_the_same_name_starts_from_nothing(run: RunFolder) -> None:
    finish(run)
    assert status(run).results
    shutil.rmtree(run.path)
    run.make()
    run.config.write_text("")
    assert (status(run).state, status(run).results, status(run).step) == ("waiting", [], 0)
    run.events.write("started", steps=5)
    assert status(run).steps == 5
    run.events_file.write_text('{"kind": "started"}\n')  # the same file, cut short
    assert status(run).steps == 0
    finish(run)
    assert status(run).results
    longer = [{"time": 9.0, "kind": "started", "steps": n} for n in range(100)]  # or longer
    run.events_file.write_text("".join(json.dumps(event) + "\n" for event in longer))
    assert (status(run).results, status(run).steps) == ([], 99)


def test_odd_events_do_no_harm(run: RunFolder) -> None:
    odd = [
        {"kind": "progress", "step": "x", "loss": None, "time": "now"},
        {"kind": "saved", "result": True},
        {"kind": "sample", "path": 3},
        {"kind": "from the future"},
        {"kind": "finished", "results": 5},
    ]
    run.events_file.write_text("".join(json.dumps(event) + "\n" for event in odd))
    run.control_file.write_text('{"verb": "start", "time": "x", "events": null}\n')
    assert status(run).state == "finished"


def test_runs_are_listed_latest_first(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert list_runs(root) == []
    for name in ("old", "new"):
        finish(RunFolder.create(root, name))
        time.sleep(0.01)
    (root / "not a run").mkdir()
    (root / "stray.txt").write_text("")
    assert [run.name for run in list_runs(root)] == ["new", "old"]


def test_a_run_is_found_by_name_or_path(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run = RunFolder.create(root, "my dog")
    run.config.write_text("")
    assert find_run(root, "my dog") == find_run(root, str(run.path)) == run
    with pytest.raises(UserError, match="Did you mean my dog"):
        find_run(root, "my dgo")
    with pytest.raises(UserError, match="no run is named"):
        find_run(root, "../runs/nothing")
    with pytest.raises(UserError, match="no such run"):
        status(root / "nothing")
