"""``dreambooth check``: the truth about a run that has not happened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures, tiny_sd1
from PIL import Image

from dreambooth_core.commands.main import main
from dreambooth_core.config.loading import dump
from dreambooth_core.jobs import read_receipt


def test_the_forecast_comes_true(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, pictures = tiny_sd1(tmp_path / "base"), draw_pictures(tmp_path / "pictures")
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (64, 64), (90, 120, 90)).save(pictures / "empty.png")
    changes = {"run__steps": "null", "run__epochs": 2, "method__train_text_encoder": "true"}
    config = config_for(base, pictures, tmp_path / "runs", **changes)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    assert main(["check", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    receipt = read_receipt(train(config))
    assert found["steps"] == receipt["total_steps"] == 4
    assert any("empty.png shows hardly anything" in warning for warning in found["warnings"])
    assert found["trainable"] == receipt["trainable_parameters"]
    assert found["data"] == receipt["data"]
    assert found["captions"] == receipt["first_captions"]
    assert found["config"]["run.epochs"] == 2
    skipped = found["data"]["concepts"][0]["images"]["skipped"]
    assert [one["name"] for one in skipped] == ["broken.png"]


def test_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, pictures = tiny_sd1(tmp_path / "base"), draw_pictures(tmp_path / "pictures")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    changes = {"prior__enabled": "true", "prior__num_class_images": 2}
    config = config_for(base, pictures, Path("runs"), **changes)
    (tmp_path / "config.yaml").write_text(dump(config), encoding="utf-8")
    assert main(["check", str(tmp_path / "config.yaml")]) == 0
    assert list(work.iterdir()) == []


def test_values_alone_need_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    """What a device or a missing model would refuse is not asked for; a wrong value is."""
    given = ["base.model=nowhere", "run.mixed_precision=fp16", "--preset", "object-lora-sd1"]
    assert main(["check", "--values", "--json", *given]) == 0
    values = json.loads(capsys.readouterr().out)["config"]
    assert values["run.mixed_precision"] == "fp16"
    assert values["run.steps"] == 500
    assert main(["check", "--values", "method.rank=0"]) == 2
