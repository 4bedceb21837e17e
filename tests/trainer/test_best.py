"""Which step is best is told by images that are held out, and its result is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from helpers.observed import observe
from helpers.runs import bare, config_for, folder_for, train, training_of
from helpers.tiny import draw_pictures

from dreambooth_core.config.loading import dump
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import read_receipt, status
from dreambooth_core.trainer.best import HeldOut, Record
from dreambooth_core.trainer.decide import decide
from dreambooth_core.trainer.results import Results
from dreambooth_core.trainer.run import run


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, of which two are held out."""
    return draw_pictures(tmp_path_factory.mktemp("many"), 10)


def test_the_best_step_is_measured_told_and_kept(base: Path, many: Path, tmp_path: Path) -> None:
    changes = {"save__best": "true", "save__every_steps": 2, "run__steps": 6}
    seen = observe(config_for(base, many, tmp_path, **changes))
    measured = [e for e in seen.folder.events if e["kind"] == "measured"]
    assert [e["step"] for e in measured] == [2, 4, 6]
    losses = {e["step"]: e["held_out_loss"] for e in measured}
    best = min(losses, key=lambda step: losses[step])
    assert len(set(losses.values())) == 3
    assert seen.receipt["result"]["best_step"] == measured[-1]["best"] == best
    assert status(seen.folder).best_step == best
    name = "run" if best == 6 else f"run-{best:06d}"
    kept = (seen.folder.path / "run-best.safetensors").read_bytes()
    assert kept == (seen.folder.path / f"{name}.safetensors").read_bytes()
    saved = [e for e in seen.folder.events if e.get("path") == "run-best.safetensors"]
    assert saved[-1]["step"] == best and saved[-1]["result"]
    held = seen.receipt["data"]["concepts"][0]["held_out"]
    assert len(held) == 2
    assert not set(held) & {picture.name for picture in seen.training.items.images}
    assert len(seen.training.items.images) == 8
    # What is measured disturbs nothing: the same steps without it are the same to the bit.
    plain = {"data__held_out": 2, "run__steps": 6, "run__name": "plain"}
    assert observe(config_for(base, many, tmp_path, **plain)).told("loss") == seen.told("loss")


def test_the_same_noise_whatever_the_seed_and_the_batch(
    base: Path, many: Path, tmp_path: Path
) -> None:
    found = []
    for seed, batch in ((1, 2), (2, 16)):
        changes = {"save__best": "true", "run__seed": seed, "run__batch_size": batch}
        config = config_for(base, many, tmp_path, **changes, run__name=f"run{seed}")
        training = training_of(config, folder_for(config))
        assert training.best.held_out is not None
        found.append(training.best.held_out.loss())
        torch.nn.init.normal_(training.stepper.parameters[1], std=0.5)
        assert training.best.held_out.loss() != found[-1]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.fixture
def told() -> Iterator[list[float]]:
    """What the measurements will say, one after another."""
    losses: list[float] = []
    with mock.patch.object(HeldOut, "loss", lambda self: losses.pop(0)):
        yield losses


def test_a_run_that_gets_no_better_ends(
    base: Path, many: Path, tmp_path: Path, told: list[float]
) -> None:
    told += [0.5, 0.3, 0.4, 0.3, 0.1]
    changes = {"run__stop_when": 2, "save__every_steps": 1, "run__steps": 9, "save__best": "true"}
    folder = train(config_for(base, many, tmp_path, **changes))
    result = read_receipt(folder)["result"]
    assert (result["steps"], result["best_step"], result["best_loss"]) == (4, 2, 0.3)
    assert list(folder.events)[-1]["outcome"] == "done"
    best = (folder.path / "run-best.safetensors").read_bytes()
    assert best == (folder.path / "run-000002.safetensors").read_bytes()
    assert told == [0.1]


def test_without_a_length_a_run_ends_when_it_gets_no_better(
    base: Path, many: Path, tmp_path: Path, told: list[float]
) -> None:
    told += [0.5, 0.4, 0.3, 0.2, 0.1, 0.2, 0.3]
    changes = {"run__stop_when": 1, "save__every_steps": 2, "run__steps": "null"}
    folder = train(config_for(base, many, tmp_path, **changes))
    started = next(e for e in folder.events if e["kind"] == "started")
    result = read_receipt(folder)["result"]
    assert (started["steps"], result["steps"], result["best_step"]) == (10_000, 12, 10)


def test_a_measurement_that_fails_ends_no_run(base: Path, many: Path, tmp_path: Path) -> None:
    said = iter([float("nan"), torch.OutOfMemoryError("no more")])

    def fail(held_out: HeldOut) -> float:
        answer = next(said)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with mock.patch.object(HeldOut, "loss", fail):
        changes = {"save__best": "true", "save__every_steps": 1, "run__steps": 2}
        folder = train(config_for(base, many, tmp_path, **changes))
    assert not [e for e in folder.events if e["kind"] == "measured"]
    assert any("no more" in e["message"] for e in folder.events if e["kind"] == "warning")
    assert list(folder.events)[-1]["outcome"] == "done"


def test_a_learned_word_is_kept_beside_its_adapter(
    base: Path, many: Path, tmp_path: Path, told: list[float]
) -> None:
    told += [0.2, 0.4]
    changes = {"save__best": "true", "save__every_steps": 1, "run__steps": 2}
    folder = train(config_for(base, many, tmp_path, method__kind="pivotal", **changes))
    for name in ("run", "sks"):
        best = (folder.path / f"{name}-best.safetensors").read_bytes()
        assert best == (folder.path / f"{name}-000001.safetensors").read_bytes()


def test_a_resumed_run_knows_what_was_measured(
    base: Path, many: Path, tmp_path: Path, told: list[float]
) -> None:
    told += [0.2, 0.4, 0.5]
    config = config_for(base, many, tmp_path, save__best="true", save__every_steps=1, run__steps=2)
    config = replace(config, save=replace(config.save, at_end=True))
    folder = train(config)
    longer = replace(config.run, steps=3, resume="latest")
    folder.config.write_text(dump(replace(config, run=longer)), encoding="utf-8")
    with bare():
        run(folder)
    assert read_receipt(folder)["result"]["best_step"] == 1
    best = (folder.path / "run-best.safetensors").read_bytes()
    assert best == (folder.path / "run-000001.safetensors").read_bytes()


def test_the_best_full_result_is_the_folder_and_the_file(tmp_path: Path) -> None:
    """Under second names, not in second places on the disk; what the next best one lacks goes."""
    folder = mock.Mock(path=tmp_path)
    folder.name = "run"
    method = mock.Mock(embedding=lambda: None)
    results = mock.Mock(folder=folder, method=method)
    for step in (1, 2):
        home = tmp_path / f"run-00000{step}"
        (home / "unet").mkdir(parents=True)
        (home / "unet" / "weights").write_text(str(step), encoding="utf-8")
    (tmp_path / "run-000001.safetensors").write_text("1", encoding="utf-8")
    kept = Results.keep_best(results, "run-000001", tmp_path / "run-000001")
    assert kept == tmp_path / "run-best"
    for one in ("run-{}/unet/weights", "run-{}.safetensors"):
        assert (tmp_path / one.format("best")).samefile(tmp_path / one.format("000001"))
    Results.keep_best(results, "run-000002", tmp_path / "run-000002")
    assert (kept / "unet" / "weights").read_text(encoding="utf-8") == "2"
    assert not (tmp_path / "run-best.safetensors").exists()


def test_a_record_counts_from_the_best() -> None:
    record = Record({10: 0.5, 20: 0.2, 30: 0.2, 40: 0.3})
    assert record.best == 20
    assert record.worse() == 2
    assert Record().best is None
    assert Record().worse() == 0


def test_too_few_or_too_many_images_are_refused(base: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image is held out"):
        decide(config_for(base, pictures, tmp_path, save__best="true"))
    with pytest.raises(UserError, match="leaves none to train on"):
        decide(config_for(base, pictures, tmp_path, data__held_out=3))
    found = decide(config_for(base, pictures, tmp_path, data__held_out=1))
    assert len(found.items.images) == 2
