"""``dreambooth crop``: crops are suggested, listed and taken back; images stay as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dreambooth_core.commands.main import main
from dreambooth_core.data.saliency import Wish
from dreambooth_core.data.stocktaking import take_stock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dog"
    made.mkdir()
    for name in ("a.png", "b.png"):
        image = Image.new("RGB", (100, 80), "white")
        image.paste("navy", (40, 20, 60, 60))
        image.save(made / name)
    Image.new("RGB", (60, 60), "red").save(made / "plain.png")
    return made


def told(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    assert main(["crop", *more, "--json"]) == 0
    return {one["image"]: one["crop"] for one in json.loads(capsys.readouterr().out)["images"]}


def test_suggested_listed_and_taken_back(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bytes_before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert told(capsys, str(folder)) == {"a.png": None, "b.png": None, "plain.png": None}
    assert told(capsys, str(folder), "--suggest", "--dry-run", "--least", "0")["a.png"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(bytes_before)
    own = {"left": 0.0, "top": 0.0, "right": 0.5, "bottom": 0.5}
    (folder / "b.crop.json").write_text(json.dumps(own))
    seen = tmp_path / "seen.png"
    found = told(capsys, str(folder), "--suggest", "--least", "0", "--preview", str(seen))
    assert (found["b.png"], found["plain.png"]) == (own, None)
    first = take_stock(folder).taken[0]
    assert first.size[0] > first.size[1] and first.size[0] < 60
    with Image.open(seen) as sheet:
        assert sheet.width > sheet.height
    assert told(capsys, str(folder))["a.png"] == found["a.png"]
    square = told(capsys, str(folder), "--suggest", "--overwrite", "--ratio", "1:1", "--least", "0")
    assert square["b.png"] == square["a.png"] != found["a.png"]
    assert main(["crop", str(folder)]) == 0
    assert "a.png: cropped to" in capsys.readouterr().out
    (folder / "b.crop.json").write_text("{")  # a damaged one goes as well
    assert set(told(capsys, str(folder), "--clear")) == {"a.png", "b.png"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == bytes_before


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--suggest", "--clear"], "suggested and deleted"),
        (["--suggest", "--ratio", "wide"], "no shape"),
        (["--suggest", "--ratio", "0:1"], "no shape"),
        (["--suggest", "--ratio", "1:nan"], "no shape"),
    ],
)
def test_what_cannot_be(
    folder: Path, more: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["crop", str(folder), *more]) == 2
    assert what in capsys.readouterr().err


def test_the_margin_is_that_of_the_wish() -> None:
    """The command says percent."""
    from dreambooth_core.commands.crop import Options

    assert Options(folder=Path()).margin / 100 == Wish().margin
