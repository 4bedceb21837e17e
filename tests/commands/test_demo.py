"""The demo, shortened: training on pocket teaches, and not only runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.commands import demonstration
from dreambooth_core.commands.main import main
from dreambooth_core.families import loading
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.trainer import run as runs

REPORT = {
    "steps",
    "train_seconds",
    "loss_first",
    "loss_last",
    "subject_similarity_before",
    "subject_similarity_after",
    "class_similarity_before",
    "class_similarity_after",
    "prompt_fidelity_before",
    "prompt_fidelity_after",
    "class_diversity_before",
    "class_diversity_after",
    "adapter_file",
    "grid_image",
}


def test_the_demo_teaches_the_star(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demonstration, "BACKGROUNDS", ("night", "grass", "brick"))
    monkeypatch.setattr(demonstration, "CLASS_SEEDS", tuple(range(21, 24)))
    monkeypatch.setattr(demonstration, "SUBJECT_SEEDS", (11,))
    monkeypatch.setattr(loading, "recommended", lambda _: {"steps": 10})
    monkeypatch.setattr(runs, "estimate_of", lambda *_: None)
    short = [
        "run.steps=45",
        "run.batch_size=2",
        "optim.learning_rate=4e-3",
        "prior.num_class_images=4",
        "prior.num_inference_steps=10",
        "validation.prompts=[]",
        "log.tensorboard=false",
    ]
    assert main(["demo", "--json", "--out", str(tmp_path), *short]) == 0
    report = json.loads(capsys.readouterr().out)
    folder = tmp_path / "demo"
    assert report == json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report.keys() >= REPORT
    assert report["steps"] == 45
    assert report["loss_last"] < report["loss_first"]
    gain = report["subject_similarity_after"] - report["subject_similarity_before"]
    drift = report["class_similarity_after"] - report["class_similarity_before"]
    assert gain > 0.2
    assert gain > drift
    assert report["prompt_fidelity_after"] >= 0.6
    assert read_adapter(Path(report["adapter_file"])).family == "sd1"
    with Image.open(report["grid_image"]) as grid:
        assert grid.width > 600
        assert grid.height > 600
    assert (folder / "loss.png").is_file()


def test_a_flow_model_is_taught_by_the_same_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few steps: the road, from the base that is put together to an adapter that is scored."""
    monkeypatch.setattr(demonstration, "BACKGROUNDS", ("night",))
    monkeypatch.setattr(demonstration, "CLASS_SEEDS", (21,))
    monkeypatch.setattr(demonstration, "SUBJECT_SEEDS", (11,))
    monkeypatch.setattr(loading, "recommended", lambda _: {"steps": 2})
    monkeypatch.setattr(runs, "estimate_of", lambda *_: None)
    short = [
        "run.steps=4",
        "run.batch_size=1",
        "prior.num_class_images=1",
        "prior.num_inference_steps=2",
        "validation.prompts=[]",
        "log.tensorboard=false",
    ]
    assert main(["demo", "--base", "pocket-flow", "--json", "--out", str(tmp_path), *short]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() >= REPORT
    assert Path(report["grid_image"]).parent == tmp_path / "demo-pocket-flow"
    assert read_adapter(Path(report["adapter_file"])).family == "z_image"


def test_pocket_is_small_and_whole() -> None:
    folder = embedded_folder()
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 24_000_000
    assert not [file for file in files if file.suffix in (".bin", ".pt", ".ckpt")]
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"


def test_another_folder_is_not_emptied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.txt").write_text("two years of work")
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "thesis" not in capsys.readouterr().out
    assert (tmp_path / "demo" / "thesis.txt").read_text() == "two years of work"
