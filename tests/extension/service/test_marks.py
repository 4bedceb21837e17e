"""Images of a run are marked, and the form of the run that goes on is filled."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.fake_host import FakeHost
from PIL import Image

from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, write_receipt
from extension.service import Studio
from extension.tab.history import marked

CONFIG = """\
base: {model: pocket}
concepts: [{images: star, instance_prompt: a photo of a sks star}]
optim: {learning_rate: 0.002}
run: {name: star, output: elsewhere, steps: 400}
"""


@pytest.fixture
def run(host: FakeHost) -> RunFolder:
    """A run with four images of two prompts."""
    made = RunFolder.create(host.folders().runs, "star")
    made.config.write_text(CONFIG, encoding="utf-8")
    (made.path / "star.safetensors").write_bytes(b"")
    for n in range(4):
        image = made.samples / f"step-000400-0{n}.png"
        Image.new("RGB", (8, 8), (n, 0, 0)).save(image)
        prompt = ("a star at night", "a star in snow")[n // 2]
        made.events.write("sample", path=made.relative(image), step=400, prompt=prompt, seed=n)
    made.events.write("sample", path="../config.yaml", step=1, prompt="no image of it", seed=0)
    write_receipt(
        made, base={"fingerprint": "b"}, result={"file": "star.safetensors", "steps": 400}
    )
    return made


def test_marks_are_kept_and_shown(host: FakeHost, run: RunFolder) -> None:
    studio = Studio(Path(__file__).parents[3], host)
    studio.mark("star", "step-000400-00.png", "good")
    studio.mark("star", "step-000400-01.png", "good")
    studio.mark("star", "step-000400-01.png", "bad")
    found = studio.runs.marks("star")
    assert [one.mark for one in found] == ["good", "bad", "", ""]
    page = str(marked(found))
    assert page.count("data-marked=") == 4 and page.count('data-marked="good"') == 1
    assert "step-000400-00.png&quot;, &quot;bad&quot;" in page  # what a click makes of it
    for image, mark in (("../config.yaml", "good"), ("step-000400-00.png", "fine")):
        with pytest.raises(UserError):
            studio.mark("star", image, mark)


def test_the_run_that_goes_on(host: FakeHost, run: RunFolder) -> None:
    studio = Studio(Path(__file__).parents[3], host)
    with pytest.raises(UserError, match="no such file"):
        studio.runs.going_on("star")
    studio.mark("star", "step-000400-00.png", "good")
    assert "objective.loss" not in studio.runs.going_on("star")
    studio.mark("star", "step-000400-02.png", "bad")
    assert "objective.loss" not in studio.runs.going_on("star"), "of another prompt"
    studio.mark("star", "step-000400-01.png", "bad")
    values = studio.runs.going_on("star")
    assert values["objective.loss"] == "dpo" and values["run.steps"] == 100
    assert values["marks.file"] == str(run.samples / "marks.json")
    assert values["method.init_from"] == str(run.path / "star.safetensors")
    assert values["optim.learning_rate"] == pytest.approx(6e-4)
    assert values["concepts[0].instance_prompt"] == "a photo of a sks star"
    assert not any(key.startswith(("run.name", "run.output")) for key in values)
