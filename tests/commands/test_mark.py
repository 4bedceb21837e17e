"""``dreambooth mark`` and ``train --continue``: from a run's images to the run that goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures, tiny_sd1

from dreambooth_core.commands.main import main
from dreambooth_core.commands.train import Options, read_by_hand
from dreambooth_core.data.marks import read_marks
from dreambooth_core.jobs import RunFolder, read_receipt

Said = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that has drawn two images of one prompt."""
    root = tmp_path_factory.mktemp("made")
    pictures = draw_pictures(root / "pictures")
    config = config_for(
        tiny_sd1(root / "base"),
        pictures,
        root / "runs",
        run__steps=1,
        method__dropout=0.1,
        validation__prompts="[a ball at night]",
        validation__images=2,
        validation__num_inference_steps=1,
    )
    return train(config)


@pytest.fixture
def run(made: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(made.path, tmp_path / "ball"))


def mark(run: RunFolder, capsys: pytest.CaptureFixture[str], *given: str) -> Said:
    assert main(["mark", str(run.path), "--json", *given]) == 0
    return dict(json.loads(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    assert main(list(given)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_marks_are_kept_beside_the_images(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = names = [one["image"] for one in mark(run, capsys)["images"]]
    assert len(names) == 4 and not (run.samples / "marks.json").exists()
    told = mark(run, capsys, "--good", first, "--bad", second)
    assert (told["good"], told["bad"], told["pairs"]) == (1, 1, 1)
    marks = read_marks(run.path)
    assert marks.base == read_receipt(run)["base"]["fingerprint"]
    assert [(m.image, m.prompt, m.seed, m.mark) for m in marks.images] == [
        (first, "a ball at night", 0, "good"),
        (second, "a ball at night", 1, "bad"),
    ]
    assert mark(run, capsys, "--clear", second)["bad"] == 0
    assert main(["mark", str(run.path)]) == 0
    assert f"good  {first}" in capsys.readouterr().out


def test_a_run_goes_on_with_pairs_or_with_the_good_ones_alone(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *_ = [one["image"] for one in mark(run, capsys)["images"]]
    mark(run, capsys, "--good", first)
    config, _ = read_by_hand(Options(going_on=str(run.path)))
    assert (config.objective.loss, config.method.dropout) == ("l2", 0.1)
    mark(run, capsys, "--bad", second)
    config, _ = read_by_hand(Options(going_on=str(run.path), overrides=["run.steps=30"]))
    assert (config.objective.loss, config.method.dropout, config.run.steps) == ("dpo", 0.0, 30)
    assert Path(config.method.init_from) == run.path / read_receipt(run)["result"]["file"]
    assert Path(config.marks.file) == run.samples / "marks.json"
    assert config.optim.learning_rate == pytest.approx(3e-4)
    assert config.concepts[0].instance_prompt == "a photo of sks ball"
    prepared = ["train", "--continue", str(run.path), "--prepare", "--json"]
    assert main(prepared) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run"] != run.name and Path(told["path"]).parent == run.path.parent


def test_what_cannot_be_is_one_line(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    known = mark(run, capsys)["images"][0]["image"]
    assert "no image" in refused(capsys, "mark", str(run.path), "--good", "../config.yaml")
    twice = refused(capsys, "mark", str(run.path), "--good", known, "--bad", known)
    assert "named twice" in twice
    assert "no such file" in refused(capsys, "train", "--continue", str(run.path))
    mark(run, capsys, "--bad", known)
    assert "marked good" in refused(capsys, "train", "--continue", str(run.path))
    text = run.config.read_text(encoding="utf-8").replace("kind: lora", "kind: full")
    run.config.write_text(text, encoding="utf-8")
    assert "full cannot" in refused(capsys, "train", "--continue", str(run.path))
