"""The studio with the real engine, in the Python that runs the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.engine_environment import this_python
from helpers.fake_host import FakeHost
from PIL import Image

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt
from extension.host.base import Exposure
from extension.service import Studio, bases, handover, runs
from tests.helpers.waiting import until

ROOT = Path(__file__).parents[3]


class Workers:
    """In the place of worker processes: hold the lock, write events, end when told."""

    def __init__(self) -> None:
        self.end = threading.Event()
        self.started: list[str] = []
        self.proposals: list[str | None] = []
        self.threads: list[threading.Thread] = []

    def start(self, run: RunFolder, *, queued: bool, proposal: str | None = None) -> None:
        assert queued
        self.proposals.append(proposal)
        run.control.mark_start(run.events.size())
        lock = run.lock
        assert lock.acquire()
        self.started.append(run.name)

        def work() -> None:
            run.events.write("started", step=0, steps=10)
            run.events.write(
                "progress", step=5, steps=10, stage="train", loss=0.5, seconds_per_step=2.0
            )
            self.end.wait(20)
            run.events.write("finished", outcome="done")
            lock.release()

        self.threads.append(threading.Thread(target=work))
        self.threads[-1].start()


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    made = Workers()
    monkeypatch.setattr(runs, "start", made.start)
    monkeypatch.setattr(handover, "POLL", 0.01)
    yield made
    made.end.set()
    for thread in made.threads:
        thread.join(10)


@pytest.fixture
def studio(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setenv("DREAMBOOTH_ENV", str(this_python(tmp_path / "engine")))
    return Studio(ROOT, host)


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    folder = tmp_path / "dog"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    return {
        "base.model": "pocket",
        "concepts[0].images": str(folder),
        "concepts[0].instance_prompt": "a sks dog",
        "data.resolution": 64,
        "run.steps": 10,
    }


def test_the_models_that_come_with_the_engine_are_offered_last(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    class Engine:
        def task(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
            asked.append(options["file"])
            return {"kind": "diffusers", "family": "z_image", "trainable": True}

    monkeypatch.setattr(bases, "shared", lambda root: Engine())
    offered = [(base.name, base.path) for base in studio.bases.all()]
    assert offered[-2:] == [("pocket", "pocket"), ("pocket-flow", "pocket-flow")]
    info = studio.base_info("pocket-flow")
    assert (info.family, info.problem) == ("z_image", "")
    assert [file.name for file in asked] == ["pocket-flow"] and asked[0].is_dir()


def test_what_would_run(studio: Studio, values: dict[str, Any]) -> None:
    report = studio.check(values, ["object-lora-sd1"])
    assert report.ok, report.problems
    assert report.forecast and report.forecast["steps"] == 10
    assert report.effective["method.kind"] == "lora"
    wrong = studio.check(values | {"run.batch_size": 0, "optim.lr": 1})
    assert [problem.key for problem in wrong.problems] == ["run.batch_size", "optim.lr"]
    late = studio.check(values | {"data.resolution": 63})  # only the engine knows
    assert [problem.key for problem in late.problems] == ["data.resolution"]
    assert "settings.json" not in late.problems[0].message
    gone = studio.check(values | {"concepts[0].images": "/nowhere"})
    assert "there is no such folder" in gone.problems[0].message


def test_a_run_from_start_to_end(
    studio: Studio, host: FakeHost, workers: Workers, values: dict[str, Any]
) -> None:
    studio.presets.save("mine", {"run.seed": 42, "run.steps": 3})
    name = studio.start(values, "my: dog", ["object-lora-sd1", "mine"])
    assert name == "my_ dog"
    until(lambda: studio.runs.status(name).step == 5)
    status = studio.runs.status(name)
    assert (status.state, status.seconds_left, status.host) == (
        "running",
        10.0,
        "the model waits in RAM",
    )
    assert (status.base, status.method) == ("pocket", "lora")
    assert studio.runs.live() == name
    told = studio.runs.values(name)
    assert (told["run.seed"], told["run.steps"]) == (42, 10)
    assert "run.output" not in told
    events = studio.runs.events(name)
    assert [event["kind"] for event in events.events] == ["started", "progress"]
    assert studio.runs.events(name, events.offset).events == []
    for refused, words in (
        (lambda: studio.runs.delete(name), "at work"),
        (lambda: studio.runs.resume(name), "is running already"),
        (lambda: studio.runs.command(name, "jump"), "unknown command"),
    ):
        with pytest.raises(UserError, match=words):
            refused()
    workers.end.set()
    until(lambda: studio.runs.status(name).state == "finished")
    until(lambda: host.log and host.log[-1] == "restore")
    report = studio.check(values | {"run.steps": 7}, ["object-lora-sd1", "mine"])
    assert report.seconds == 14.0  # by the pace of the run like it
    studio.runs.resume(name)
    until(lambda: len(workers.started) == 2)
    until(lambda: studio.runs.status(name).state == "finished")
    studio.runs.delete(name)
    assert studio.runs.all() == []


def test_what_finished_unseen_is_published_at_the_next_start(
    studio: Studio, host: FakeHost, workers: Workers, values: dict[str, Any]
) -> None:
    run = RunFolder.create(host.folders().runs, "dog")
    (run.path / "webui.json").write_text(json.dumps({"publish": True}))
    header = json.dumps({"lora_unet_a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}})
    content = len(header).to_bytes(8, "little") + header.encode()
    (run.path / "dog.safetensors").write_bytes(content)
    run.events.write("saved", path="dog.safetensors", step=5, result=True)
    run.events.write("finished", outcome="done")
    other = RunFolder.create(host.folders().runs, "by hand")
    other.events.write("finished", outcome="done")
    going = RunFolder.create(host.folders().runs, "going")
    workers.start(going, queued=True)
    studio.runs.attach()
    assert [one.name for one in studio.published("dog")] == ["dog"]
    assert studio.results.prompt_for("dog") == "<lora:dog:1>"
    until(lambda: "release ram" in host.log)
    workers.end.set()
    until(lambda: host.log[-1] == "restore")
    Path(studio.published("dog")[0].path).unlink()
    studio.runs.attach()  # what the user deleted does not come back
    assert studio.published("dog") == []


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "a/b", "", "none", "."])
def test_only_runs_of_the_runs_folder(studio: Studio, name: str) -> None:
    with pytest.raises(UserError, match="no run named"):
        studio.runs.status(name)


def test_tools(studio: Studio, host: FakeHost, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    loras = host.folders().loras
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    for name in ("a", "b"):
        tensors = {
            f"{key}.lora_down.weight": torch.ones(2, 8),
            f"{key}.lora_up.weight": torch.ones(8, 2),
            f"{key}.alpha": torch.tensor(2.0),
        }
        save_file(tensors, loras / f"{name}.safetensors")
    assert [one.name for one in studio.tools.adapters()] == ["a.safetensors", "b.safetensors"]
    assert studio.inspect(str(loras / "a.safetensors"))["kind"] == "adapter"
    wanted = {
        "adapters": [{"file": "a.safetensors", "weight": 0.5}, {"file": "b", "weight": 1}],
        "out": "a",
    }
    number = studio.run_tool("merge", wanted)
    until(lambda: studio.tools.task(number).state == "done")
    task = studio.tools.task(number)
    assert task.files == [str(loras / "a-2.safetensors")]  # nothing is overwritten
    assert Path(task.files[0]).is_file() and task.result and task.result["modules"] == 1
    assert host.log[-1] == "refresh"
    failing = studio.run_tool("resize", {"source": "a.safetensors", "target": "small"})
    until(lambda: studio.tools.task(failing).state == "failed")
    assert "neither a rank nor an energy" in studio.tools.task(failing).message
    assert [one.id for one in studio.tools.tasks()] == [failing, number]
    with pytest.raises(UserError, match="no tool named"):
        studio.run_tool("train", {})


def test_a_folder_is_captioned(
    studio: Studio, values: dict[str, Any], host: FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def task(name: str, options: Any, **_: Any) -> dict[str, Any]:
        asked.append((name, options))
        return {"captions": []}

    monkeypatch.setattr(studio.tools._helper, "task", task)
    folder = values["concepts[0].images"]
    number = studio.caption(folder, model="wd-vit", never=["dog"], overwrite=True)
    until(lambda: studio.tools.task(number).state == "done")
    wanted = {"folder": Path(folder), "model": "wd-vit", "never": ["dog"], "overwrite": True}
    assert asked == [("caption", wanted)]
    for wrong in ({"model": "/etc"}, {"never": "dog"}, {"overwrite": "x"}, {"longer": 3}):
        with pytest.raises(UserError):
            studio.caption(folder, **wrong)
    with pytest.raises(UserError, match="not in a folder"):
        studio.confined().caption("/etc")


def test_a_run_is_evaluated(
    studio: Studio, host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command's task is begun with the run's own folder, and its page is found there."""
    run = host.folders().runs / "dog"
    run.mkdir(parents=True)
    (run / "events.jsonl").write_text('{"time": 1.0, "kind": "finished", "outcome": "done"}\n')
    (run / "config.yaml").write_text("run: {steps: 7}\n")
    asked: list[Any] = []

    def task(name: str, options: Any, **_: Any) -> dict[str, Any]:
        asked.append((name, options))
        (run / "evaluation.html").write_text("<p>likeness</p>")
        return {"files": {"html": str(run / "evaluation.html")}}

    monkeypatch.setattr(studio.tools._helper, "task", task)
    with pytest.raises(UserError, match="not evaluated yet"):
        studio.evaluation("dog")
    number = studio.evaluate("dog", kind="living", saves=True)
    until(lambda: studio.tools.task(number).state == "done")
    assert asked == [("evaluate", {"runs": [str(run)], "kind": "living", "saves": True})]
    page = studio.evaluation("dog")
    assert studio.tools.task(number).files == [str(page)] and page.read_text() == "<p>likeness</p>"
    for name, wrong in (("dog", {"kind": "dead"}), ("dog", {"saves": "x"}), ("cat", {})):
        with pytest.raises(UserError):
            studio.evaluate(name, **wrong)
    page.unlink()
    secret = tmp_path / "secret.html"
    secret.write_text("a secret")
    page.symlink_to(secret)
    with pytest.raises(UserError, match="not evaluated yet"):
        studio.evaluation("dog")
    run_at_work = RunFolder(run)
    assert run_at_work.lock.acquire()
    try:
        with pytest.raises(UserError, match="a run is at work"):
            studio.evaluate("dog")
    finally:
        run_at_work.lock.release()


def test_a_page_for_one_and_a_page_for_all(host: FakeHost, tmp_path: Path) -> None:
    assert Studio(ROOT, host).paths.anywhere
    assert not Studio(ROOT, host).confined().paths.anywhere
    host.exposed = Exposure(remote=True)
    assert not Studio(ROOT, host).paths.anywhere


def test_what_the_user_opened_in_the_page_the_api_may_use(host: FakeHost, tmp_path: Path) -> None:
    studio = Studio(ROOT, host)
    api = studio.confined()
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    with pytest.raises(UserError, match="not in a folder"):
        api.pictures(str(folder))
    studio.pictures(str(folder))
    assert [one.name for one in api.pictures(str(folder)).taken] == ["a.png"]
    api.set_caption(str(folder / "a.png"), "a dog")
    assert (folder / "a.txt").read_text() == "a dog\n"
    Image.new("RGB", (64, 64)).save(tmp_path / "b.png")
    studio.pictures(str(tmp_path))  # it holds the host: opened for the page alone
    with pytest.raises(UserError, match="not in a folder"):
        api.pictures(str(tmp_path))


def test_without_an_engine_nothing_starts(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENV", str(tmp_path / "none"))
    studio = Studio(ROOT, host)
    assert not studio.setup.state().ready
    for refused in (
        lambda: studio.start({}, "dog"),
        lambda: studio.inspect(str(tmp_path)),
        lambda: studio.run_tool("merge", {}),
    ):
        with pytest.raises(UserError, match="not set up"):
            refused()


def test_the_receipt_is_left_alone(studio: Studio, host: FakeHost) -> None:
    run = RunFolder.create(host.folders().runs, "dog")
    run.receipt.write_text("no JSON")
    run.events.write("finished", outcome="done")
    assert studio.saved("dog") == []
    with pytest.raises(UserError):
        read_receipt(run)
