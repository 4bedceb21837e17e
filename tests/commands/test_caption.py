"""``dreambooth caption``: captions beside images; those that are there stay."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.tiny import draw_pictures
from PIL import Image

from dreambooth_core.commands.caption import MODELS
from dreambooth_core.commands.main import main
from dreambooth_core.vision import captions, taggers


class Known:
    """Says the size of each image; fails after so many."""

    def __init__(self, enough: int = 100) -> None:
        self.left = enough

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        self.left -= len(images)
        if self.left < 0:
            raise torch.OutOfMemoryError("no more")
        return [f"a ball, {image.width} wide" for image in images]


def caption(folder: Path, *more: str) -> int:
    return main(["caption", str(folder), "--device", "cpu", *more])


def test_captions_are_written_and_those_there_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captions, "load_captioner", lambda *given, **more: Known())
    folder = draw_pictures(tmp_path / "pictures", 3)
    (folder / "ball-1.txt").write_text("my own words")
    words = ["--trigger", "sks ball", "--never", "a ball"]
    assert caption(folder, *words, "--dry-run") == 0
    assert not (folder / "ball-0.txt").exists()
    capsys.readouterr()
    assert caption(folder, *words, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kept"] == 1 and len(found["captions"]) == 2
    assert (folder / "ball-0.txt").read_text() == "sks ball, 80 wide\n"
    assert (folder / "ball-1.txt").read_text() == "my own words"
    assert caption(folder, "--overwrite") == 0
    assert (folder / "ball-1.txt").read_text() == "a ball, 80 wide\n"
    # Nothing is left to do, so no model is loaded.
    monkeypatch.setattr(captions, "load_captioner", None)
    assert caption(folder) == 0


def test_what_was_written_stays_when_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(captions, "load_captioner", lambda *given, **more: Known(1))
    folder = draw_pictures(tmp_path / "pictures", 3)
    assert caption(folder, "--batch-size", "1") == 2
    assert "does not fit into memory" in capsys.readouterr().err
    assert (folder / "ball-0.txt").exists() and not (folder / "ball-1.txt").exists()


def test_the_short_names_are_those_of_models() -> None:
    assert set(MODELS) == {*captions.MODELS, *taggers.MODELS}


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_a_link_in_a_folder_of_others_leads_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captions, "load_captioner", lambda *given, **more: Known())
    folder = draw_pictures(tmp_path / "pictures", 2)
    other, absent = tmp_path / "other.txt", tmp_path / "absent.txt"
    other.write_text("somebody's")
    (folder / "ball-0.txt").symlink_to(other)
    (folder / "ball-1.txt").symlink_to(absent)
    assert caption(folder, "--overwrite") == 0
    assert other.read_text() == "somebody's" and not absent.exists()
    assert (folder / "ball-1.txt").read_text() == "a ball, 80 wide\n"
