"""Captions and masks from a graph: the engine is asked about the concept's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comfy_nodes import looking

PROMPTS = {"instance_prompt": "a photo of sks ball", "class_prompt": "a photo of a ball"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """An engine that writes what its models would, and remembers."""
    seen: list[tuple[str, dict[str, Any]]] = []

    def task(name: str, options: dict[str, Any], progress: Any) -> dict[str, Any]:
        seen.append((name, options))
        images = sorted(Path(options["folder"]).glob("*.png"))
        if name == "caption":
            images[0].with_suffix(".txt").write_text("a photo of sks ball, on grass")
            said = {"image": images[0].name, "caption": "a photo of sks ball, on grass"}
            return {"kept": 1, "captions": [said]}
        folder = images[0].parent / "masks"
        folder.mkdir()
        (folder / images[0].name).write_bytes(images[0].read_bytes())
        told = [{"image": images[0].name, "share": 0.5}, {"image": "other.png", "share": None}]
        return {"kept": 0, "masks": told}

    monkeypatch.setattr(looking.engine, "task", task)
    return seen


def test_captions_come_between_images_and_training(
    run: Any, host: Any, pictures: Path, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    (concept,) = run("DreamBoothImages", folder="ball", captions="off", **PROMPTS)
    (after,) = run("DreamBoothCaptionImages", concept=concept, never="ball\n\nred scarf")
    ((name, options),) = asked
    assert (name, options["trigger"]) == ("caption", "a photo of sks ball")
    assert options["never"] == ["ball", "red scarf"] and options["download"] is False
    assert after[0].captions == "auto" and after[0].options == concept[0].options
    assert after[0].fingerprint != concept[0].fingerprint
    assert run.lines[0].endswith("a photo of sks ball, on grass")
    assert run.lines[1] == "1 captions that were there stay"


def test_masks_come_between_images_and_training(
    run: Any, host: Any, pictures: Path, asked: list[tuple[str, dict[str, Any]]]
) -> None:
    (concept,) = run("DreamBoothImages", folder="ball", **PROMPTS)
    (after,) = run("DreamBoothMaskImages", concept=concept, words="a ball", threshold=0.6)
    ((name, options),) = asked
    assert (name, options["word"], options["threshold"]) == ("mask", ["a ball"], 0.6)
    assert after[0].fingerprint != concept[0].fingerprint
    assert (concept[0].masks, after[0].masks) == ("", "files")
    assert run.lines[0].endswith("50% of it counts")
    assert run.lines[1] == "other.png: nothing found, no mask"


def test_nothing_is_written_beside_the_engines_own_images(run: Any, host: Any) -> None:
    (concept,) = run("DreamBoothImages", folder="(example: a star)", **PROMPTS)
    with pytest.raises(Exception, match="belong to the engine"):
        run("DreamBoothCaptionImages", concept=concept)
