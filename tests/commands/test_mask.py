"""``dreambooth mask``: masks that training takes; those that are there stay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers.tiny import draw_pictures
from PIL import Image
from torch import Tensor

from dreambooth_core.commands.main import main
from dreambooth_core.data.images import load_mask
from dreambooth_core.data.stocktaking import take_stock
from dreambooth_core.vision import masks


class Known:
    """Finds the left half of every image, and nothing of a word that it does not know."""

    def __init__(self, enough: int = 100) -> None:
        self.left = enough

    def find(self, image: Image.Image, words: Sequence[str]) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise torch.OutOfMemoryError("no more")
        found = torch.zeros(len(words), 8, 8)
        found[[word == "ball" for word in words], :, :4] = 1.0
        return found


def mask(folder: Path, *more: str) -> int:
    return main(["mask", str(folder), "--device", "cpu", *more])


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "load_segmenter", lambda *given, **more: Known())


@pytest.mark.usefixtures("known")
def test_masks_are_written_where_training_finds_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = draw_pictures(tmp_path / "pictures", 3)
    Image.new("L", (80, 80), 7).save(folder / "ball-1.mask.png")
    seen = tmp_path / "seen.png"
    assert mask(folder, "--word", "ball", "--dry-run") == 0
    assert not (folder / "masks").exists()
    capsys.readouterr()
    sharp = ("--threshold", "0.5", "--grow", "0", "--feather", "0", "--preview", str(seen))
    assert mask(folder, "--word", "ball", "--json", *sharp) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kept"], [one["share"] for one in found["masks"]]) == (1, [0.5, 0.5])
    first, second, _ = take_stock(folder).taken
    assert first.mask == folder / "masks" / "ball-0.png.png"
    made, own = load_mask(first), load_mask(second)
    assert made is not None and (made.getpixel((0, 0)), made.getpixel((79, 0))) == (255, 0)
    assert own is not None and own.getpixel((0, 0)) == 7
    with Image.open(seen) as sheet:
        assert sheet.width > sheet.height
    assert mask(folder, "--word", "ball", "--overwrite", *sharp) == 0
    own = load_mask(take_stock(folder).taken[1])
    assert own is not None and own.getpixel((0, 0)) == 255


@pytest.mark.usefixtures("known")
def test_what_is_not_found_has_no_mask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = draw_pictures(tmp_path / "pictures", 1)
    assert mask(folder, "--word", "cat") == 0
    assert "nothing found, no mask" in capsys.readouterr().out
    assert not (folder / "masks").exists()


def test_a_word_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mask(draw_pictures(tmp_path / "pictures", 1), "--word", " ") == 2
    assert "--word: nothing says what counts" in capsys.readouterr().err


def test_what_was_written_stays_when_memory_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(masks, "load_segmenter", lambda *given, **more: Known(1))
    folder = draw_pictures(tmp_path / "pictures", 2)
    assert mask(folder, "--word", "ball") == 2
    assert "masks made so far stay" in capsys.readouterr().err
    assert len(list((folder / "masks").iterdir())) == 1
