"""``dreambooth evaluate``: a run is judged beside its base, with and without encoders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import flow_bases
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures, tiny_sd1
from PIL import Image

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.commands import judging
from dreambooth_core.commands.main import main
from dreambooth_core.evaluation import encoders as judge_encoders
from dreambooth_core.families.loading import load_base
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with a saved step on the way, and images held out."""
    base = tiny_sd1(tmp_path_factory.mktemp("base"))
    pictures = draw_pictures(tmp_path_factory.mktemp("pictures"), 8)
    changes = {"save__best": "true", "save__every_steps": 1, "run__steps": 2}
    root = tmp_path_factory.mktemp("runs")
    return train(config_for(base, pictures, root, optim__learning_rate=1e-1, **changes))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny random CLIP and DINO, as folders that transformers load."""
    from transformers import (
        BitImageProcessor,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
    )

    clip, dino = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("dino")
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision = {**small, "image_size": 16, "patch_size": 8}
    shutil.copytree(embedded_folder() / "tokenizer", clip, dirs_exist_ok=True)
    vocabulary = len(json.loads((clip / "vocab.json").read_text(encoding="utf-8")))
    text = {**small, "vocab_size": vocabulary, "eos_token_id": vocabulary - 1}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(clip)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(clip)
    del vision["intermediate_size"]
    Dinov2Model(Dinov2Config(**vision)).save_pretrained(dino)
    BitImageProcessor(size={"shortest_edge": 16}, crop_size=16).save_pretrained(dino)
    return clip, dino


def evaluate(
    run: RunFolder, out: Path, capsys: pytest.CaptureFixture[str], *more: str
) -> dict[str, Any]:
    """The report of the command on two prompts of its own."""
    prompts = out / "prompts.json"
    out.mkdir(parents=True, exist_ok=True)
    prompts.write_text(json.dumps(["{} on white", "{} on black"]))
    few = ["--prompts", str(prompts), "--images", "1", "--steps", "1", "--device", "cpu"]
    place = [] if out == run.path else ["--out", str(out)]
    assert main(["evaluate", str(run.path), *few, *place, "--json", *more]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads((out / "evaluation.json").read_text(encoding="utf-8")) == found
    return found


def test_a_full_result_on_the_way_may_be_the_denoiser_alone(tmp_path: Path) -> None:
    """As hosts keep it: the other parts are the base's."""
    base = flow_bases.z_image(tmp_path / "base")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    changes = {"method__kind": "full", "save__full_steps": "file", "save__every_steps": 1}
    rate = {"run__steps": 2, "optim__learning_rate": 1e-2, "method__train_text_encoder": "false"}
    done = train(config_for(base, draw_pictures(pictures, 2), tmp_path / "runs", **changes, **rate))
    judged = judging.JudgedRun(done.path, saves=True)
    step, last = judged.entrants
    assert (step.file.name, step.file.with_suffix("").exists()) == ("run-000001.safetensors", False)
    parts = load_base(judged.base)
    own = read_tensors(step.file)["layers.0.feed_forward.w1.weight"]
    with judged.applied(parts, step) as whole:
        weight = whole.denoiser.state_dict()["layers.0.feed_forward.w1.weight"]
        assert torch.equal(weight, own.to(weight.dtype))
        before = parts.denoiser.state_dict()["layers.0.feed_forward.w1.weight"]
        assert not torch.equal(weight, before)
    with judged.applied(parts, last) as whole:
        after = whole.denoiser.state_dict()["layers.0.feed_forward.w1.weight"]
        assert not torch.equal(weight, after)


def test_every_save_is_judged_beside_the_base(
    run: RunFolder,
    encoders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = ["--clip", str(encoders[0]), "--dino", str(encoders[1])]
    found = evaluate(run, tmp_path / "out", capsys, "--saves", *named)
    labels = [model["label"] for model in found["models"]]
    assert labels == ["base", "run, step 1", "run"]
    for model in found["models"]:
        assert set(model["measures"]) == {
            "subject", "clip_i", "clip_t", "preservation", "diversity"
        }  # fmt: skip
    measured = [e for e in run.events if e["kind"] == "measured"]
    assert [m["held_out_loss"] for m in found["models"][1:]] == [
        e["held_out_loss"] for e in measured
    ]
    assert [m["best"] for m in found["models"][1:]] == [
        e["step"] == measured[-1]["best"] for e in measured
    ]
    assert "none of them trained on" in found["facts"]["real images"]
    assert [model["step"] for model in found["models"]] == [None, 1, 2]
    assert found["names"]["subject"] == "Subject"
    with Image.open(found["files"]["png"]) as grid:  # three prompts of three models
        assert grid.width > 3 * 160 and 3 * 160 < grid.height < 4 * 180
    text = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    # The one held-out image, and of three models two prompts' images and eight of the class.
    assert text.count("<img") == 1 + 3 * 10
    assert len(set(re.findall(r'src="([^"]+)"', text))) == 1 + 3 * 10  # each model draws its own


def test_without_encoders_the_held_out_loss_is_told(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(judge_encoders, "CLIP", str(tmp_path / "none"))
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunFolder(tmp_path / "run")
    found = evaluate(copy, copy.path, capsys)  # into the run's own folder
    assert "is not on this machine" in found["notes"][0]
    base, last = found["models"]
    assert not base["measures"] and not last["measures"]
    assert last["held_out_loss"] is not None


def test_a_run_without_a_result_is_refused(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run.path, tmp_path / "empty")
    (tmp_path / "empty" / "receipt.json").unlink()
    assert main(["evaluate", str(tmp_path / "empty")]) == 2
    assert "has no result yet" in capsys.readouterr().err


def test_what_cannot_work_is_said_before_anything_is_drawn(
    run: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(judging, "_draw", None)
    monkeypatch.setattr(judging, "load_base", lambda *_: None)
    monkeypatch.setattr(judging, "_on", lambda *_: None)
    monkeypatch.setattr(judging, "_settings", lambda *_: None)
    file, model = tmp_path / "file", tmp_path / "model"
    file.write_text("a file")
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "clip", "projection_dim": 1e12}')
    for more, said in {
        ("--out", str(file)): "could not save",
        ("--clip", str(model)): "projection_dim is 1e+12",
        ("--dino", str(tmp_path / "gone")): "is not on this machine",
    }.items():
        assert main(["evaluate", str(run.path), *more]) != 0
        assert said in capsys.readouterr().err
