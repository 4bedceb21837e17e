"""Sample images of a training are called good or bad, and a training goes on from there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from comfy_nodes.marking import look_at_marks
from comfy_nodes.settings import Settings
from dreambooth_core.data.marks import read_marks
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, write_receipt


@pytest.fixture
def past(host: Any) -> RunFolder:
    """A finished run with four images of two prompts."""
    folder = RunFolder.create(host.output / "dreambooth", "dog")
    settings = "method: {kind: lora}\noptim: {learning_rate: 0.001}\nrun: {steps: 400}\n"
    folder.config.write_text(settings, encoding="utf-8")
    (folder.path / "dog.safetensors").write_bytes(b"")
    for n in range(4):
        image = folder.samples / f"step-000400-0{n}.png"
        Image.new("RGB", (16, 16), (60 * n, 0, 0)).save(image)
        prompt = ("a dog at night", "a dog in snow")[n // 2]
        folder.events.write("sample", path=folder.relative(image), step=400, prompt=prompt, seed=n)
    result = {"file": "dog.safetensors", "steps": 400}
    write_receipt(folder, base={"fingerprint": "b"}, result=result)
    return folder


def test_marks_become_settings(run: Callable[..., Any], past: RunFolder) -> None:
    before = Settings(values={"method.rank": 8, "run.steps": 900})
    settings, images = run("DreamBoothMarkImages", run="dog", good="1, 3", bad="2", settings=before)
    assert images.shape == (4, 16, 16, 3)
    assert [one.mark for one in read_marks(past.path).images] == ["good", "bad", "good", ""]
    assert settings.values == {
        "method.rank": 8,
        "method.init_from": str(past.path / "dog.safetensors"),
        "method.init_weight": 1.0,
        "marks.file": str(past.samples / "marks.json"),
        "run.steps": 100,
        "optim.lr_warmup_steps": 0,
        "optim.learning_rate": pytest.approx(3e-4),
        "objective.loss": "dpo",
        "method.dropout": 0.0,
        "method.text_dropout": None,
    }
    assert run.lines[1] == "2: bad  a dog at night"  # type: ignore[attr-defined]
    seen = look_at_marks("dog")
    run("DreamBoothMarkImages", run="dog", good="1 3", bad="2")
    assert look_at_marks("dog") == seen
    alone, _ = run("DreamBoothMarkImages", run="dog", good="1,3-4", bad="")
    assert "objective.loss" not in alone.values
    assert look_at_marks("dog") != seen


def test_nothing_is_marked_at_first(run: Callable[..., Any], past: RunFolder) -> None:
    settings, images = run("DreamBoothMarkImages", run="dog", good="", bad="")
    assert settings.values == {} and len(images) == 4


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("5", "", "no image 5"),
        ("x", "", "no number"),
        ("1-2", "2", "good and bad"),
        ("", "0", "no"),
    ],
)
def test_what_is_no_image_is_one_line(
    run: Callable[..., Any], past: RunFolder, good: str, bad: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        run("DreamBoothMarkImages", run="dog", good=good, bad=bad)
    assert not (past.samples / "marks.json").exists()
