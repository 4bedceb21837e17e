"""A run's images are called good or bad with clicks, and the form goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from helpers.engine_environment import ROOT
from PIL import Image

from dreambooth_core.data.marks import read_marks
from dreambooth_core.jobs import RunFolder, write_receipt

if TYPE_CHECKING:
    from .conftest import Server
    from .driving import Browser

STAR = ROOT / "dreambooth_core" / "assets" / "demo" / "star"


def finished(server: Server) -> RunFolder:
    """A run that is over, with two images of one prompt."""
    run = RunFolder.create(server.runs, "star")
    concept = f"{{images: '{STAR.as_posix()}', instance_prompt: a photo of a sks star}}"
    settings = f"base: {{model: pocket}}\nconcepts: [{concept}]\nrun: {{steps: 400}}\n"
    run.config.write_text(settings, encoding="utf-8")
    (run.path / "star.safetensors").write_bytes(b"")
    run.events.write("started", step=0, steps=400)
    for n in range(2):
        image = run.samples / f"step-000400-0{n}.png"
        Image.new("RGB", (64, 64), (200 * n, 90, 30)).save(image)
        run.events.write("sample", path=run.relative(image), step=400, prompt="a star", seed=n)
    run.events.write("finished", outcome="done", results=["star.safetensors"])
    write_receipt(run, base={"fingerprint": "b"}, result={"file": "star.safetensors", "steps": 400})
    return run


# What a page of the other gradio does differently is in test_form.py, for both.
@pytest.mark.parametrize(
    "python", ["a1111", pytest.param("forge", marks=pytest.mark.long)], indirect=True
)
def test_clicks_mark_images_and_the_form_goes_on(browser: Browser, server: Server) -> None:
    run = finished(server)
    browser.refresh()
    image = "#dreambooth_marks figure:nth-of-type({}) img"
    for place, wanted in ((1, "good"), (2, "good"), (2, "bad")):
        browser.press(image.format(place))
        now = f"#dreambooth_marks figure:nth-of-type({place})[data-marked={wanted}]"
        browser.until(lambda now=now: browser.find(now), wanted)
    assert [one.mark for one in read_marks(run.path).images] == ["good", "bad"]
    browser.press("#dreambooth_continue")
    browser.reads("#dreambooth_marks_said", "Its settings")
    browser.until(lambda: browser.value("#dreambooth_field_run_steps") == "100", "the steps")
    assert browser.value("#dreambooth_field_marks_file") == str(run.samples / "marks.json")
    assert browser.value("#dreambooth_field_objective_loss") == "dpo"
    assert browser.value("#dreambooth_field_method_init_from").endswith("star.safetensors")
