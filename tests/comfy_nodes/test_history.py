"""Past runs and their saved steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from comfy_nodes import host as nodes_host
from comfy_nodes.history import look_at_run, wanted_steps
from dreambooth_core.errors import UserError
from dreambooth_core.formats.storage import write_tensors
from dreambooth_core.jobs import RunFolder, write_receipt


@pytest.fixture
def past(host: Any) -> RunFolder:
    """A run of 6 steps that saved 2, 4 and the end, with pictures at 4."""
    folder = RunFolder.create(host.output / "dreambooth", "dog")
    for name in ("dog-000002", "dog-000004", "dog"):
        write_tensors(folder.path / f"{name}.safetensors", {"lora_unet_x": torch.ones(1)}, {})
    Image.new("RGB", (16, 16), "red").save(folder.samples / "step-000004-00.png")
    Image.new("RGB", (40, 20)).save(folder.path / "loss.png")
    folder.events.write("started", step=0, steps=6)
    folder.events.write("progress", stage="train", step=6, steps=6, loss=0.25)
    folder.events.write("sample", path="samples/step-000004-00.png", step=4, prompt="a dog")
    folder.events.write("finished", outcome="done", results=["dog.safetensors"])
    write_receipt(folder, result={"file": "dog.safetensors", "steps": 6})
    return folder


def test_pick_a_step(run: Callable[..., Any], past: RunFolder) -> None:
    adapter, samples, loss = run("DreamBoothRuns", run="dog", step=4)
    assert adapter.path == past.path / "dog-000004.safetensors"
    assert samples.shape == (1, 16, 16, 3) and samples[0, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert loss.shape == (1, 20, 40, 3)
    assert run.lines == [  # type: ignore[attr-defined]
        "dog: finished, 6 of 6 steps",
        "saved steps: 2, 4, 6",
        "loss 0.2500",
    ]
    assert run("DreamBoothRuns", run="dog")[0].path == past.path / "dog.safetensors"


def test_the_best_step_is_a_choice(run: Callable[..., Any], past: RunFolder) -> None:
    with pytest.raises(UserError, match="measured no step"):
        run("DreamBoothRuns", run="dog", step=-2)
    past.events.write("measured", step=2, best=2, held_out_loss=0.1)
    past.events.write("measured", step=4, best=2, held_out_loss=0.2)
    assert run("DreamBoothRuns", run="dog", step=-2)[0].path.name == "dog-000002.safetensors"
    assert "best step: 2" in run.lines  # type: ignore[attr-defined]
    assert list(wanted_steps(past, "best, 6")) == [2, 6]
    past.events.write("measured", step=3, best=3, held_out_loss=0.0)
    (past.path / "dog-000004.safetensors").replace(past.path / "dog-best.safetensors")
    adapter, *_ = run("DreamBoothRuns", run="dog", step=-2)
    assert (adapter.path.name, adapter.step) == ("dog-best.safetensors", 3)


@pytest.mark.parametrize("name", ["cat", "../dog", "..", "(no runs yet)"])
def test_only_runs_are_opened(run: Callable[..., Any], past: RunFolder, name: str) -> None:
    with pytest.raises(UserError, match="there is no such run"):
        run("DreamBoothRuns", run=name)


def test_steps_that_were_not_saved(run: Callable[..., Any], past: RunFolder) -> None:
    with pytest.raises(UserError, match=r"step 3 was not saved.*Saved: 2, 4, 6"):
        run("DreamBoothRuns", run="dog", step=3)


def test_the_cache_sees_new_steps(past: RunFolder) -> None:
    before = look_at_run(run="dog")
    write_tensors(past.path / "dog-000005.safetensors", {"lora_unet_x": torch.ones(1)}, {})
    assert look_at_run(run="dog") != before
    assert look_at_run(run="nothing") == ""


def test_compare(
    run: Callable[..., Any], past: RunFolder, host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.sd import load_checkpoint_guess_config  # type: ignore[import-not-found]

    drawn = []

    def draw(model: Any, clip: Any, vae: Any, prompt: str, how: Any) -> Image.Image:
        drawn.append((len(model.patches), prompt, how.seed))
        return Image.new("RGB", (how.width, how.height), "blue")

    monkeypatch.setattr(nodes_host, "draw", draw)
    model, clip, vae, _ = load_checkpoint_guess_config("base")
    given = {"model": model, "clip": clip, "vae": vae, "run": "dog", "prompts": "one\n\ntwo"}
    given |= {
        "sampler": "euler",
        "scheduler": "simple",
        "width": 64,
        "height": 64,
        "random_seed": 3,
    }
    grid, images = run("DreamBoothCompareSteps", steps="2, 6", **given)
    assert drawn == [(n, prompt, 3) for n in (0, 1, 1) for prompt in ("one", "two")]
    assert images.shape == (6, 64, 64, 3)
    assert grid.ndim == 4 and grid.shape[2] > 3 * 64
    with pytest.raises(UserError, match="step 7 was not saved"):
        run("DreamBoothCompareSteps", steps="7", **given)
    with pytest.raises(UserError, match="there is no prompt"):
        run("DreamBoothCompareSteps", **{**given, "prompts": " "}, steps="")
