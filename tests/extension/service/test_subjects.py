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
    assert secret.read_text() == "a secret" and not absent.exists()


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
