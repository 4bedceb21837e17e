"""Pictures, uploads, captions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.fake_host import FakeHost
from PIL import Image

from dreambooth_core.errors import UserError
from extension.service.paths import Paths
from extension.service.subjects import EDGE, Subjects


def anything(_: Path) -> bool:
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "dog"
    made.mkdir()
    Image.new("RGB", (600, 300), "red").save(made / "a.png")
    Image.new("I;16", (64, 64)).save(made / "deep.png")
    (made / "a.txt").write_text("a red dog", encoding="utf-8")
    (made / "broken.jpg").write_bytes(b"no picture")
    return made


def test_everything_is_accounted_for(host: FakeHost, folder: Path) -> None:
    found = Subjects(host).pictures(folder, anything)
    assert [(one.name, one.caption) for one in found.taken] == [
        ("a.png", "a red dog"),
        ("deep.png", ""),
    ]
    assert [one["name"] for one in found.skipped] == ["broken.jpg"]
    for one in found.taken:
        with Image.open(one.thumbnail) as small:
            assert small.format == "JPEG" and max(small.size) <= EDGE
        assert host.folders().home in Path(one.thumbnail).parents
    assert Subjects(host).pictures(folder, anything) == found  # the thumbnails are used again


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_what_lies_in_a_folder_leads_nowhere(host: FakeHost, folder: Path, tmp_path: Path) -> None:
    """A folder of images may come from anybody, with captions that are links."""
    secret, absent = tmp_path / "secret.txt", tmp_path / "absent.txt"
    secret.write_text("a secret")
    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(secret)
    (folder / "deep.txt").symlink_to(absent)
    subjects = Subjects(host)
    confined = Paths(host.folders, anywhere=False, opened=[folder])
    for may_read, seen in ((anything, ["a secret", ""]), (confined.may_read, ["", ""])):
        assert [one.caption for one in subjects.pictures(folder, may_read).taken] == seen
    for name in ("a", "deep"):
        subjects.set_caption(folder / f"{name}.png", "a dog")
        assert (folder / f"{name}.txt").read_text() == "a dog\n"
        assert not (folder / f"{name}.txt").is_symlink()
        subjects.set_crop(folder / f"{name}.png", [0, 0, 1, 1])
    assert secret.read_text() == "a secret" and not absent.exists()
    crop = folder / "a.png.crop.json"
    crop.replace(tmp_path / "elsewhere.json")
    crop.symlink_to(tmp_path / "elsewhere.json")
    assert subjects.pictures(folder, confined.may_read).taken[0].crop is None
    subjects.set_crop(folder / "a.png", [0, 0, 0.5, 1])
    assert not crop.is_symlink() and "1.0" in (tmp_path / "elsewhere.json").read_text()


def test_captions_are_written_and_removed(host: FakeHost, folder: Path) -> None:
    subjects = Subjects(host)
    subjects.set_caption(folder / "a.png", " a blue dog \n")
    subjects.set_caption(folder / "deep.png", "something")
    assert [one.caption for one in subjects.pictures(folder, anything).taken] == [
        "a blue dog",
        "something",
    ]
    subjects.set_caption(folder / "a.png", "")
    assert not (folder / "a.txt").exists()


def test_crops_are_written_suggested_and_removed(host: FakeHost, folder: Path) -> None:
    subjects = Subjects(host)
    picture = folder / "a.png"
    before = picture.read_bytes()

    def shown() -> list[object]:
        return [one.crop for one in subjects.pictures(folder, anything).taken]

    subjects.set_crop(picture, [0.25, 0, 0.75, 1])
    assert shown() == [[0.25, 0, 0.75, 1], None]
    found = Subjects(host).pictures(folder, anything).taken[0]
    assert (found.width, found.height) == (600, 300)  # of the image, which is as it was
    for strange in ([0.5, 0, 0.5, 1], [0, 0, 1], [float("nan")] * 4, [-1, 0, 1, 1]):
        with pytest.raises(UserError):
            subjects.set_crop(picture, strange)
    (folder / "a.png.crop.json").write_text("{}")
    noted = subjects.pictures(folder, anything).taken[0]
    assert noted.crop is None and "this crop cannot be used" in noted.notes[-1]
    subjects.set_crop(picture, [0, 0, 0.5, 1])  # drawn anew
    assert shown()[0] == [0, 0, 0.5, 1]
    subjects.set_crop(picture, None)
    assert shown() == [None, None] and not (folder / "a.png.crop.json").exists()
    assert picture.read_bytes() == before
    assert subjects.suggest_crop(picture) is None
    with Image.open(picture) as image:
        image.paste("white", (200, 100, 300, 200))
        image.save(picture)
    sides = subjects.suggest_crop(picture)
    assert sides is not None and sides[0] < 200 / 600 < 300 / 600 < sides[2]


def test_uploads_get_a_folder_of_their_own(host: FakeHost, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 64)).save(other / "a.png")
    subjects = Subjects(host)
    made = Path(subjects.upload([folder / "a.png", other / "a.png"], "../my: dog"))
    assert made.parent == host.folders().uploads
    assert sorted(path.name for path in made.iterdir()) == ["a-2.png", "a.png"]
    assert Path(subjects.upload([folder / "a.png"], "../my: dog")) != made
    with pytest.raises(UserError, match="no files"):
        subjects.upload([], "dog")
