"""Images and Concepts: where pictures come from, what is shown, what the cache sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dreambooth_core.errors import UserError

PROMPT = {"instance_prompt": "a photo of sks ball", "class_prompt": "a photo of a ball"}


def test_a_folder_of_the_input_folder(run: Any, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    ((concept,),) = run("DreamBoothImages", folder="ball", repeats=2, **PROMPT)
    assert concept.options == {"images": str(pictures), "repeats": 2, **PROMPT}
    assert "3 images taken, 1 skipped" in run.lines[0]
    assert any("broken.png" in line for line in run.lines)


def test_the_example_is_at_hand(run: Any) -> None:
    ((concept,),) = run("DreamBoothImages", folder="(example: a star)", **PROMPT)
    assert "5 images taken" in run.lines[0]
    assert Path(concept.options["images"]).name == "star"


@pytest.mark.parametrize("relative", [True, False])
def test_any_path(run: Any, pictures: Path, relative: bool) -> None:
    named = "ball" if relative else f' "{pictures}" '
    ((concept,),) = run("DreamBoothImages", path=named, **PROMPT)
    assert concept.options["images"] == str(pictures)


def test_images_from_the_graph_are_kept_once(run: Any, host: Any) -> None:
    images = torch.rand(2, 64, 64, 3)
    ((first,),) = run("DreamBoothImages", images=images, **PROMPT)
    ((again,),) = run("DreamBoothImages", images=images, **PROMPT)
    ((other,),) = run("DreamBoothImages", images=images.flip(0), **PROMPT)
    assert first == again
    assert first.options["images"] != other.options["images"]
    folder = Path(first.options["images"])
    assert folder.is_relative_to(host.output)
    assert [p.name for p in sorted(folder.iterdir())] == ["0000.png", "0001.png"]


def test_masks_along_links(run: Any, host: Any) -> None:
    """White counts, an empty one is none, and the loss is masked without a further setting."""
    images, mask = torch.rand(2, 64, 48, 3), torch.zeros(2, 32, 24)
    mask[1, :16] = 1
    ((one,),) = run("DreamBoothImages", images=images, mask=mask, **PROMPT)
    folder = Path(one.options["images"])
    assert [p.name for p in sorted(folder.iterdir())] == ["0000.png", "0001.mask.png", "0001.png"]
    with Image.open(folder / "0001.mask.png") as kept:
        assert kept.size == (48, 64)
        assert (kept.getpixel((5, 5)), kept.getpixel((5, 60))) == (255, 0)
    assert one.masks == "files" and run.lines[1] == "  1 of them with a mask"
    ((other,),) = run("DreamBoothImages", images=images, mask=mask.flip(0), **PROMPT)
    ((bare,),) = run("DreamBoothImages", images=images, **PROMPT)
    assert len({each.fingerprint for each in (one, other, bare)}) == 3 and bare.masks == ""
    with pytest.raises(UserError, match="3 masks for 2 images"):
        run("DreamBoothImages", images=images, mask=torch.ones(3, 8, 8), **PROMPT)
    with pytest.raises(UserError, match="a mask and no image"):
        run("DreamBoothImages", folder="ball", mask=mask, **PROMPT)


def test_single_images_of_any_size_are_chained(run: Any, host: Any) -> None:
    (first,) = run("DreamBoothAddImage", image=torch.rand(1, 64, 64, 3), caption=" a sks ball ")
    (both,) = run(
        "DreamBoothAddImage", image=torch.rand(2, 70, 80, 3), mask=torch.ones(70, 80), images=first
    )
    ((concept,),) = run("DreamBoothImages", added=both, **PROMPT)
    names = [path.name for path in sorted(Path(concept.options["images"]).iterdir())]
    assert names == [
        "0000.png", "0000.txt", "0001.mask.png", "0001.png", "0002.mask.png", "0002.png"
    ]  # fmt: skip
    assert (Path(concept.options["images"]) / "0000.txt").read_text() == "a sks ball"
    assert concept.masks == "files"


def test_masks_in_a_folder_are_told(run: Any, pictures: Path) -> None:
    Image.new("L", (64, 64), 255).save(pictures / "0-mask.png")
    run("DreamBoothImages", folder="ball", **PROMPT)
    assert "3 images taken" in run.lines[0]
    assert run.lines[1] == (
        "  1 of them with a mask; they count where “Masked loss” (Settings: Data) says so"
    )


@pytest.mark.parametrize("text", ["/$HF_TOKEN/x", "${HF_TOKEN}", "%HF_TOKEN%/x"])
def test_no_variable_of_the_environment_is_put_into_a_path(
    run: Any, host: Any, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a path that is not there would tell the secret."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError, match="there is no such folder") as caught:
        run("DreamBoothImages", **{**PROMPT, "path": text})
    assert "hf_secret" not in caught.value.line and "HF_TOKEN" in caught.value.line


def test_what_the_cache_sees(host: Any, pictures: Path) -> None:
    from comfy_nodes.concepts import look

    before = look(folder="ball")
    assert before == look(folder="ball")
    (pictures / "0.txt").write_text("a red ball")
    captioned = look(folder="ball")
    assert captioned != before
    (pictures / "0.txt").write_text("a scarlet ball")
    assert look(folder="ball") != captioned
    (pictures / "1.png").unlink()
    assert len({before, captioned, look(folder="ball")}) == 3
    assert "no such folder" in look(path="nowhere")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "no images are named"),
        ({"folder": "ball", "path": "ball"}, "exactly one source"),
        ({"path": "nowhere"}, "there is no such folder"),
        ({"path": "empty"}, "the folder is empty"),
        ({"folder": "ball", "instance_prompt": " "}, "the instance prompt is empty"),
    ],
)
def test_one_line_for_what_cannot_work(
    run: Any, host: Any, pictures: Path, inputs: dict[str, Any], message: str
) -> None:
    (host.root / "input" / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        run("DreamBoothImages", **{**PROMPT, **inputs})


def test_several_concepts(run: Any, pictures: Path) -> None:
    (one,) = run("DreamBoothImages", folder="ball", **PROMPT)
    (two,) = run("DreamBoothImages", folder="ball", instance_prompt="a blue ball")
    (joined,) = run("DreamBoothConcepts", concept_1=one, concept_2=two)
    assert [c.options["instance_prompt"] for c in joined] == [
        "a photo of sks ball",
        "a blue ball",
    ]
    (files,) = run("DreamBoothImages", folder="ball", captions="files", **PROMPT)
    with pytest.raises(UserError, match="captions in different ways"):
        run("DreamBoothConcepts", concept_1=one, concept_2=files)
