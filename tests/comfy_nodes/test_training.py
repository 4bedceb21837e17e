"""Training from a graph: real runs of a reduced model in the engine's own process."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from comfy_nodes import requests, training, watching
from comfy_nodes.requests import FILE, Draft, Found, Request, find, prepare, saved_checkpoints
from comfy_nodes.watching import line_of
from dreambooth_core.config.loading import load
from dreambooth_core.errors import DreamBoothError, UserError
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.embeddings import read_embedding
from dreambooth_core.jobs import RunFolder, spare, status
from dreambooth_core.options import TrainConfig
from tests.helpers.reduced_models import reduced_parts
from tests.helpers.waiting import until

PROMPTS = {"instance_prompt": "a photo of sks ball", "class_prompt": "a photo of a ball"}
QUICK = (
    "data.resolution=64\ndata.crop=center\nvalidation.steps=1\nlog.tensorboard=false\nmethod.rank=2"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all these tests have their ComfyUI, one after the other, and their caches: a worker
    that has ended the run of one takes up that of the next."""
    folder = tmp_path_factory.mktemp("place")
    write_single_file(reduced_parts("sd1"), folder / "base.safetensors")
    return folder


@pytest.fixture
def comfyui(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(place / "cache" / name))
    kind_of = spare.kind_of

    def kind(command: Any, environ: Any, code: Path) -> str:
        """With what pytest writes there the worker of each test would be of another kind."""
        return kind_of(
            command, {k: v for k, v in environ.items() if k != "PYTEST_CURRENT_TEST"}, code
        )

    monkeypatch.setattr(spare, "kind_of", kind)
    root = place / "comfyui"
    yield root
    runs = root / "output" / "dreambooth"
    until(lambda: not any(RunFolder(path.parent).lock.is_held() for path in runs.glob(f"*/{FILE}")))
    made = [root / "input", root / "models", *(runs.glob("*") if runs.is_dir() else ())]
    mine = [folder for folder in made if folder.name != spare.FOLDER]

    def gone() -> bool:
        """A worker that waits may have something of its last run open."""
        for folder in mine:
            shutil.rmtree(folder, ignore_errors=True)
        return not any(folder.exists() for folder in mine)

    until(gone)


@pytest.fixture
def graph(host: Any, run: Any, pictures: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Images → Settings → a training node; keywords are the settings' or the training node's.

    As for people, a worker takes up the next run of its folder.
    """
    monkeypatch.setenv("DREAMBOOTH_SPARE_MINUTES", "0.2")
    shutil.copy2(place / "base.safetensors", host.checkpoints())
    (concept,) = run("DreamBoothImages", folder="ball", **PROMPTS)

    def call(node: str = "DreamBoothTrainLora", *, steps: int = 4, **inputs: Any) -> Any:
        more = inputs.pop("overrides", "")
        (settings,) = run(
            "DreamBoothSettings",
            preset=inputs.pop("preset", "(none)"),
            steps=steps,
            overrides=f"{QUICK}\n{more}",
        )
        given = {"checkpoint": "base.safetensors", "concept": concept, "name": "ball"}
        return run(node, **{**given, "settings": settings, **inputs})

    return call


def runs_in(host: Any) -> list[str]:
    return sorted(p.parent.name for p in (host.output / "dreambooth").glob(f"*/{FILE}"))


def test_the_models_that_come_with_the_engine_are_asked_for_by_name(
    run: Any, host: Any, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "whole", lambda config, *_: config)
    (concept,) = run("DreamBoothImages", folder="ball", **PROMPTS)
    asked = [Draft("ball", name, concept, None).request() for name in ("pocket", "pocket-flow")]
    assert [one.config["base"]["model"] for one in asked] == ["pocket", "pocket-flow"]
    assert asked[0].sources[0] != asked[1].sources[0]
    assert training.CHECKPOINT.choices is not None
    assert training.CHECKPOINT.choices()[-2:] == ["pocket", "pocket-flow"]
    assert training.look_at_base("pocket-flow") == "pocket-flow"


def test_masks_of_the_graph_count(run: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "whole", lambda config, *_: config)
    image = {"images": torch.rand(1, 64, 64, 3), "mask": torch.ones(1, 64, 64)}
    (concept,) = run("DreamBoothImages", **image, **PROMPTS)
    (off,) = run("DreamBoothSettingsData", masks="none")
    told = [Draft("a", "pocket", concept, given).request().config for given in (None, off)]
    assert [config["data"]["masks"] for config in told] == ["files", "none"]


def test_training_can_start_from_an_adapter(graph: Any, run: Any, host: Any) -> None:
    """And from another state of its file it is another training."""
    *_, adapter, _, _ = graph(steps=2)
    *_, longer, _, _ = graph(name="more", steps=2, start=adapter)
    config = load(TrainConfig, files=[RunFolder(longer.path.parent).config])
    assert config.method.init_from == str(adapter.path)
    graph(name="again", steps=2, start=adapter)
    assert run.lines[0].startswith("more: trained before with the same inputs")
    os.utime(adapter.path, ns=(1, 1))
    graph(name="again", steps=2, start=adapter)
    assert run.lines == ["again: trained now"]


def test_the_rank_goes_over_the_settings(graph: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def ask(request: Request, progress: Any) -> Any:
        raise Asked(request.config["method.rank"])

    monkeypatch.setattr(training, "fulfil", ask)
    for rank, wanted in ((7, 7), (0, 2)):
        with pytest.raises(Asked) as asked:
            graph(rank=rank)
        assert asked.value.args == (wanted,)


def test_train_use_again_and_go_on(graph: Any, run: Any, host: Any) -> None:
    model, clip, vae, adapter, samples, loss = graph(sample_every=2)
    assert (model.name, clip.name, vae) == ("base.safetensors",) * 2 + ("vae of base.safetensors",)
    assert model.patches and not clip.patches
    assert adapter.path == host.output / "dreambooth" / "ball" / "ball.safetensors"
    assert samples.shape == (1, 64, 64, 3)
    assert loss.ndim == 4 and loss.shape[2] > 200
    assert host.freed == 1
    assert run.lines == ["ball: trained now"]
    assert any("step 4/4, loss " in line for line in host.said)
    assert sum(1 for _, _, preview in host.shown if preview is not None) == 3
    event, drawn = host.sent[-1]
    assert event == "dreambooth.curves" and drawn["steps"] == 4
    assert [step for step, _ in drawn["loss"]] == [1, 2, 3, 4]

    graph(sample_every=2)
    assert run.lines == ["ball: trained before with the same inputs"]
    graph(sample_prompts="a ball")
    assert "sample images are those of before" in run.lines[1]
    assert host.freed == 1

    *_, longer, _, _ = graph(sample_every=2, steps=6)
    assert run.lines == ["ball: resumed from step 4"]
    assert runs_in(host) == ["ball"]
    started = [e for e in RunFolder(longer.path.parent).events if e["kind"] == "started"]
    assert [(e["step"], e["steps"]) for e in started] == [(0, 4), (4, 6)]
    assert len(read_adapter(longer.path).modules) > 4


def test_cancel_keeps_what_was_learned(graph: Any, run: Any, host: Any) -> None:
    host.interrupt_at = 5
    with pytest.raises(Exception, match="somebody pressed the button"):
        graph(steps=5000)
    folder = RunFolder(host.output / "dreambooth" / "ball")
    assert status(folder).state == "stopped"
    (step,) = saved_checkpoints(folder)
    assert 5 <= step < 200
    host.interrupt_at, host.shown = float("inf"), []
    graph(steps=step + 2)
    assert run.lines == [f"ball: resumed from step {step}"]


class Said:
    """A node's line of text."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_worker_is_given_all_the_time_that_saving_takes(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but a person ends it before what was learned is written."""
    folder = past_run(host, request(5), "a", [{"kind": "started", "step": 0, "steps": 5}])
    lock, waited, said = folder.lock, [], Said()
    assert lock.acquire()

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if sum(waited) > 3600:  # an hour of writing
            (folder.checkpoints / "step-000003").mkdir(parents=True)
            (folder.checkpoints / "step-000003" / "state.json").touch()
            folder.events.write("finished", outcome="stopped")
            lock.release()

    monkeypatch.setattr(watching, "POLL", 600.0)
    monkeypatch.setattr("comfy_nodes.watching.time.sleep", wait)
    monkeypatch.setattr(watching, "terminate", lambda *a, **k: pytest.fail("it was killed"))
    watching.stop(folder, said)  # type: ignore[arg-type]
    assert "saved" in said.lines[0]
    assert said.lines[-1] == "a: stopped; step 3 of 5 is kept: queue again to resume"


def test_each_press_is_more_insistent(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = past_run(host, request(5), "a", [{"kind": "started", "step": 0, "steps": 5}])
    lock, ended = folder.lock, []
    assert lock.acquire()

    def kill(run: RunFolder, *, patience: float) -> str:
        ended.append(patience)
        lock.release()
        return "killed"

    monkeypatch.setattr("comfy_nodes.watching.host.cancelled", lambda: True)
    monkeypatch.setattr(watching, "terminate", kill)
    said = Said()
    watching.stop(folder, said)  # type: ignore[arg-type]
    assert folder.control.poll() == ["stop", "stop_without_saving"]
    assert ended == [0.0]
    assert said.lines[-1] == "a: stopped; nothing was saved yet"


def test_a_whole_model(graph: Any, run: Any, host: Any) -> None:
    model, _, _, file, _, _ = graph("DreamBoothTrainCheckpoint", steps=2, name="all")
    assert file == "dreambooth/all.safetensors"
    listed = host.checkpoints() / file
    assert listed.is_file()
    assert model.name == listed.name and not model.patches
    graph("DreamBoothTrainCheckpoint", steps=2, name="all")
    assert "trained before" in run.lines[0]
    with pytest.raises(UserError, match="object-full-sd1"):
        graph("DreamBoothTrainCheckpoint", preset="object-lora-sd1")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"overrides": "method.rnak=3"}, "rank"),
        ({"overrides": "method.rank=0"}, r"“Rank” .*: 0 is too small"),
        ({"overrides": "optim.ema.decay=nan"}, r"“EMA decay” .*'nan' is not a number"),
        ({"checkpoint": "gone.safetensors"}, "no such file among the checkpoints"),
    ],
)
def test_wrong_settings_start_nothing(
    graph: Any, host: Any, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        graph(**inputs)
    assert runs_in(host) == []
    assert host.freed == 0


def test_without_the_engine_the_command_is_named(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMBOOTH_ENV", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"not installed yet.*python install\.py"):
        graph()


def request(steps: int | None, **config: Any) -> Request:
    return Request("x", {"run.steps": steps, "run.epochs": 1, **config}, ("base",))


def past_run(host: Any, asked: Request, name: str, events: list[dict[str, Any]]) -> RunFolder:
    folder = RunFolder.create(host.output / "dreambooth", name)
    facts = {"key": asked.key, "length": asked.length, "samples": asked.samples}
    (folder.path / FILE).write_text(json.dumps(facts), encoding="utf-8")
    for event in events:
        folder.events.write(event.pop("kind"), **event)
    return folder


def test_keys_tell_what_matters() -> None:
    assert request(5).key == request(6).key
    assert request(5).key == request(5, **{"run.name": "other"}).key
    assert request(5).key == request(5, **{"validation.prompts[0]": "x", "save.keep": 1}).key
    assert request(5).key != request(5, **{"save.precision": "fp32"}).key
    # What was asked for before an option came is what it means by default.
    assert (
        request(5).key == request(5, **{"optim.max_grad_norm": 1.0, "save.precision": "fp16"}).key
    )
    assert request(5).key != request(5, **{"optim.learning_rate": 1}).key
    assert request(5).key != Request("x", request(5).config, ("other base",)).key


def test_what_is_found(host: Any) -> None:
    assert find(request(5)) is None
    done = {"kind": "finished", "outcome": "done"}
    folder = past_run(host, request(5), "a", [done])
    found = find(request(5))
    assert found is not None and (found.action, found.step) == ("use", None)
    assert find(request(9)) is None, "there is no state to go on from"
    (folder.checkpoints / "step-000005").mkdir()
    (folder.checkpoints / "step-000005" / "state.json").touch()
    found = find(request(9))
    assert found is not None and (found.action, found.step) == ("resume", 5)
    assert find(request(3)) is None, "what was learned later cannot be unlearned"
    (folder.path / "a-000003.safetensors").touch()
    found = find(request(3))
    assert found is not None and (found.action, found.step) == ("use", 3)


def test_a_run_that_still_goes_is_watched(host: Any) -> None:
    folder = past_run(host, request(5), "a", [{"kind": "started", "step": 0, "steps": 5}])
    lock = folder.lock
    assert lock.acquire()
    try:
        found = find(request(5))
        assert found is not None and found.action == "watch"
    finally:
        lock.release()
    assert find(request(5)) is None, "it died without a checkpoint"


def test_what_a_resume_changes_waits_for_the_worker(host: Any) -> None:
    folder = past_run(host, request(5), "a", [{"kind": "finished", "outcome": "stopped"}])
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    found = Found(folder, "resume", step=5)
    same, proposal = prepare(request(9), found)
    assert same == folder and proposal is not None
    after = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    assert after == before
    proposal.accept(folder)
    assert json.loads(folder.config.read_text())["run"]["steps"] == 9
    assert json.loads((folder.path / "comfyui.json").read_text())["length"] == [9, 1]


def test_lines() -> None:
    assert line_of({"stage": "latents", "step": 2, "steps": 5}) == "encoding images 2/5"
    event = {"stage": "train", "step": 10, "steps": 110, "loss": 0.1, "seconds_per_step": 3.0}
    assert line_of(event) == "step 10/110, loss 0.1000, 5 min left"
    compiled = {**event, "compile_seconds": 41.2}
    assert line_of(compiled) == "step 10/110, loss 0.1000, compiled in 41 s, 5 min left"
    measured = {"kind": "measured", "step": 40, "best": 20}
    assert line_of(measured) == "step 40, the best so far is step 20"
    assert line_of({"stage": "proof"}) == "checking the saved file"
    assert line_of({"kind": "started", "step": 0, "steps": 9}) == "step 0/9"


def test_a_word_is_learned_and_used(graph: Any, run: Any, host: Any) -> None:
    """A word alone, and a word and a LoRA, onto CLIP and MODEL in the same graph."""
    word = {"token": "sks", "initializer_token": "ball", "vectors": "2"}
    call = {"node": "DreamBoothTrainEmbedding", "name": "my word", **word}
    model, clip, _, adapter, name, samples, _ = graph(**call, preset="object-lora-sd1", steps=2)
    assert not model.patches and not clip.patches and adapter.message is None
    assert name == "embedding:dreambooth/my-word" and samples.shape == (1, 64, 64, 3)
    listed = host.root / "models" / "embeddings" / "dreambooth" / "my-word.safetensors"
    assert [len(rows) for rows in read_embedding(listed).rows] == [2]
    assert run.lines == [
        "my word: trained now",
        f"sks is {name} in prompts for other CLIPs",
    ]
    read = clip.tokenizer.tokenize_with_weights
    assert read("(SKS:1.1), asks embedding:sks") == [
        "(", name, ":1.1),", "asks", "embedding:sks"
    ]  # fmt: skip

    both = graph(**call, method="pivotal", steps=4, overrides="save.every_steps=2")
    assert both[0].patches and both[3].path.name == "my word-2.safetensors"
    assert both[4] == "embedding:dreambooth/my-word-2"
    graph(**call, method="pivotal", steps=2, overrides="save.every_steps=2")
    assert run.lines[0].startswith("my word-2: trained before with the same inputs")
    chosen, *_ = run("DreamBoothRuns", run="my word-2", step=2)
    assert chosen.path.name == "my word-2-000002.safetensors"
    assert run.lines[-1] == (
        "sks is embedding:dreambooth/my-word-2-000002 in prompts for other CLIPs"
    )
    (alone, *_) = run("DreamBoothRuns", run="my word")
    assert alone.message is None and run.lines[-1].startswith(f"sks is {name} in")


def test_a_failure_is_one_line(graph: Any, host: Any) -> None:
    (host.checkpoints() / "broken.safetensors").write_bytes(b"no model")
    with pytest.raises(DreamBoothError, match=r"broken\.safetensors") as caught:
        graph(checkpoint="broken.safetensors")
    assert "\n" not in caught.value.line
