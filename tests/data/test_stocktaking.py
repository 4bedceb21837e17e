"""Any folder will do: everything in it is taken or skipped, with a reason, and nothing raises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from dreambooth_core.data.inventory import ImageFile, Skipped
from dreambooth_core.data.stocktaking import look_at, take_stock
from dreambooth_core.errors import UserError


def _skipped(inventory) -> dict[str, str]:
    return {item.name: item.reason for item in inventory.skipped}


def _taken(inventory) -> dict[str, ImageFile]:
    return {picture.name: picture for picture in inventory.taken}


def _write_zoo(folder: Path, draw, encode) -> None:
    """One of each kind that people have in their folders."""
    image = draw()
    jpeg = encode(draw(64, 48), "JPEG")
    (folder / "plain.jpg").write_bytes(jpeg)
    (folder / "UPPER.JPG").write_bytes(encode(draw(seed=1), "JPEG"))
    (folder / "ünïcødé 写真.png").write_bytes(encode(draw(seed=2)))
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "._plain.jpg").write_bytes(b"\0\5\26\7")
    (folder / "Thumbs.db").write_bytes(b"x")
    (folder / "readme.txt").write_text("about these pictures")
    (folder / "corrupt.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "garbage.jpg").write_bytes(b"this is no picture at all")
    (folder / "empty.png").write_bytes(b"")
    (folder / "movie.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    (folder / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    frames = [draw(seed=s) for s in (3, 4)]
    (folder / "moving.gif").write_bytes(
        encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    )
    (folder / "still.gif").write_bytes(encode(frames[0], "GIF"))
    deep = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    (folder / "deep.png").write_bytes(encode(Image.fromarray(deep)))
    (folder / "cmyk.jpg").write_bytes(encode(image.convert("CMYK"), "JPEG"))
    clear = draw(seed=5).convert("RGBA")
    clear.putalpha(Image.fromarray((np.indices((30, 40)).sum(0) % 256).astype(np.uint8)))
    (folder / "clear.png").write_bytes(encode(clear))
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "rotated.jpg").write_bytes(encode(draw(seed=6), "JPEG", exif=exif))
    (folder / "pages.tiff").write_bytes(
        encode(draw(seed=7), "TIFF", save_all=True, append_images=[draw(seed=8)])
    )
    (folder / "really.jpg").write_bytes(encode(draw(seed=9)))
    (folder / "nameless").write_bytes(encode(draw(seed=10)))
    (folder / "web.webp").write_bytes(encode(draw(seed=11), "WEBP"))
    (folder / "copy of plain.jpg").write_bytes(jpeg)


def test_every_kind_of_file_is_accounted_for(tmp_path, draw, encode):
    _write_zoo(tmp_path, draw, encode)
    inventory = take_stock(tmp_path)
    taken, skipped = _taken(inventory), _skipped(inventory)

    assert len(taken) + len(skipped) == len(list(tmp_path.iterdir()))
    for name, reason in {
        ".DS_Store": "hidden",
        "._plain.jpg": "hidden",
        "Thumbs.db": "system",
        "readme.txt": "without an image",
        "corrupt.jpg": "damaged",
        "garbage.jpg": "damaged",
        "empty.png": "empty",
        "movie.mp4": "a video",
        "phone.heic": "HEIC",
        "moving.gif": "animated",
    }.items():
        assert reason in skipped[name], name
    for name, note in {
        "deep.png": "more than 8 bits",
        "cmyk.jpg": "CMYK",
        "clear.png": "transparent",
        "rotated.jpg": "turned upright",
        "pages.tiff": "the first of 2 pages",
        "really.jpg": "is PNG",
        "nameless": "is PNG",
        "plain.jpg": "the same image as copy of plain.jpg",
    }.items():
        assert any(note in text for text in taken[name].notes), name
    for name in ("UPPER.JPG", "ünïcødé 写真.png", "still.gif", "web.webp"):
        assert taken[name].notes == ()
    assert (taken["rotated.jpg"].width, taken["rotated.jpg"].height) == (30, 40)
    assert taken["clear.png"].has_alpha
    assert not taken["plain.jpg"].has_alpha


def test_the_report_is_json_and_readable(tmp_path, draw, encode):
    _write_zoo(tmp_path, draw, encode)
    inventory = take_stock(tmp_path)
    report = json.loads(json.dumps(inventory.as_dict()))
    assert {item["name"] for item in report["taken"]} == set(_taken(inventory))
    assert {item["name"] for item in report["skipped"]} == set(_skipped(inventory))
    text = "\n".join(inventory.lines())
    assert "moving.gif: animated" in text
    assert "13 images taken, 10 skipped" in text


def test_order_and_fingerprint_are_those_of_the_contents(tmp_path, draw, encode):
    for name in ("b.png", "a.png", "C.png"):
        (tmp_path / name).write_bytes(encode(draw(seed=ord(name[0]))))
    first = take_stock(tmp_path)
    assert [picture.name for picture in first.taken] == ["a.png", "b.png", "C.png"]
    assert take_stock(tmp_path).fingerprint == first.fingerprint
    (tmp_path / "a.png").write_bytes(encode(draw(seed=99)))
    assert take_stock(tmp_path).fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda path: None, "no such folder"),
        (lambda path: path.write_text("x"), "a file, not a folder"),
        (lambda path: path.mkdir(), "the folder is empty"),
        (lambda path: (path.mkdir(), (path / "a.png").write_bytes(b"")), "a.png (empty (0 bytes))"),
    ],
)
def test_a_folder_without_pictures_is_one_clear_line(tmp_path, make, what):
    folder = tmp_path / "pictures"
    make(folder)
    with pytest.raises(UserError) as caught:
        take_stock(folder)
    assert what in caught.value.line
    assert str(folder) in caught.value.line
    assert "\n" not in caught.value.line


def test_nothing_to_take_can_be_allowed(tmp_path):
    assert take_stock(tmp_path / "none", allow_empty=True).taken == []
    assert take_stock(tmp_path, allow_empty=True).taken == []


def test_subfolders(tmp_path, draw, encode):
    for name in ("one/a.png", "one/two/b.png", "10_sks dog/c.png", ".git/d.png", "class/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encode(draw(seed=len(name))))
    inventory = take_stock(tmp_path, exclude=[tmp_path / "class"])
    assert {name: p.repeats for name, p in _taken(inventory).items()} == {
        "one/a.png": 1,
        "10_sks dog/c.png": 10,
    }
    assert any("10 times" in text for text in inventory.warnings)
    skipped = _skipped(inventory)
    assert skipped["one/two/"] == "more than one level deep"
    assert skipped["class/"] == "holds the class images"
    assert skipped[".git/"] == "a hidden folder"
    flat = take_stock(tmp_path, subfolders=False)
    assert list(_taken(flat)) == ["10_sks dog/c.png"]
    assert "subfolders are off" in _skipped(flat)["one/"]


def test_captions_and_masks_are_found_whatever_the_case(tmp_path, draw, encode):
    for name in ("Dog.JPG", "cat.png", "cow.png", "hen.png"):
        (tmp_path / name).write_bytes(encode(draw(seed=ord(name[0])), "PNG"))
    (tmp_path / "dog.txt").write_text("a dog")
    (tmp_path / "cat.png.caption").write_text("a cat")
    (tmp_path / "cow.mask.png").write_bytes(encode(Image.new("L", (40, 30), 255)))
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "cat.png").write_bytes(encode(Image.new("L", (80, 20), 255)))
    (tmp_path / "masks" / "hen.png").write_bytes(b"broken")
    (tmp_path / "masks" / "fox.png").write_bytes(encode(Image.new("L", (4, 4), 255)))
    inventory = take_stock(tmp_path)
    taken = _taken(inventory)
    assert set(taken) == {"Dog.JPG", "cat.png", "cow.png", "hen.png"}
    assert taken["Dog.JPG"].caption == tmp_path / "dog.txt"
    assert taken["cat.png"].caption == tmp_path / "cat.png.caption"
    assert taken["cow.png"].mask == tmp_path / "cow.mask.png"
    assert taken["cat.png"].mask == tmp_path / "masks" / "cat.png"
    assert any("another shape" in note for note in taken["cat.png"].notes)
    assert taken["hen.png"].mask is None
    assert any("hen.png" in text and "mask" in text for text in inventory.warnings)
    assert _skipped(inventory)["masks/fox.png"] == "a mask without an image of its name"


def test_a_decomposed_name_finds_its_caption(tmp_path, draw, encode):
    (tmp_path / "caf\u00e9.png").write_bytes(encode(draw()))
    (tmp_path / "cafe\u0301.txt").write_text("a café")
    assert take_stock(tmp_path).taken[0].caption is not None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names there are Unicode")
def test_a_name_that_is_not_unicode(tmp_path, draw, encode):
    path = os.fsencode(tmp_path) + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(encode(draw()))
    inventory = take_stock(tmp_path)
    assert len(inventory.taken) == 1
    json.dumps(inventory.as_dict(), ensure_ascii=False).encode("utf-8")
    "\n".join(inventory.lines()).encode("utf-8")


def test_links(tmp_path, draw, encode):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(encode(draw()))
    folder = tmp_path / "folder"
    folder.mkdir()
    try:
        (folder / "a.png").symlink_to(tmp_path / "real" / "a.png")
        (folder / "broken.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("no links here")
    inventory = take_stock(folder)
    assert list(_taken(inventory)) == ["a.png"]
    assert "broken link" in _skipped(inventory)["broken.png"]


def test_a_huge_picture_is_skipped_with_its_reason(tmp_path, draw, encode, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    (tmp_path / "large.png").write_bytes(encode(draw(40, 30)))
    (tmp_path / "warned.png").write_bytes(encode(draw(30, 20)))
    inventory = take_stock(tmp_path)
    assert list(_taken(inventory)) == ["warned.png"]
    assert "million pixels" in _skipped(inventory)["large.png"]


def test_a_file_too_large_to_be_a_picture_is_not_read(tmp_path, monkeypatch, draw, encode):
    monkeypatch.setattr("dreambooth_core.data.stocktaking.LARGEST_FILE", 10)
    (tmp_path / "a.png").write_bytes(encode(draw()))
    found = look_at(tmp_path / "a.png")
    assert isinstance(found, Skipped)
    assert "larger than" in found.reason


KINDS = ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "TGA", "PPM"]
KINDS += ["AVIF"] if features.check("avif") else []


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    kind=st.sampled_from(KINDS),
    cut=st.floats(0, 1),
    hits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_damage_never_raises(tmp_path, draw, encode, kind, cut, hits):
    content = bytearray(encode(draw(16, 12), kind))
    for where, value in hits:
        content[int(where * len(content))] = value
    path = tmp_path / f"x.{kind.lower()}"
    path.write_bytes(content[: round(cut * len(content))])
    found = look_at(path)
    assert isinstance(found, (ImageFile, Skipped))
    if isinstance(found, Skipped):
        assert found.reason
        assert "\n" not in found.reason


def test_taking_stock_does_not_load_torch():
    code = (
        "import sys, dreambooth_core.data.stocktaking as i\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.skipif(os.name != "posix", reason="such folders are Linux's and macOS's")
@pytest.mark.parametrize("folder", ["/dev", "/proc", "/sys", "/dev/fd"])
def test_the_systems_folders_are_not_looked_into(folder):
    if not os.path.isdir(folder):
        pytest.skip("not here")
    with pytest.raises(UserError, match="the system's own"):
        take_stock(folder)


def test_a_folder_has_a_limit(tmp_path, monkeypatch, draw, encode):
    monkeypatch.setattr("dreambooth_core.data.stocktaking.MOST_ENTRIES", 3)
    for number in range(4):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(UserError, match="more than 3 files"):
        take_stock(tmp_path)


def test_links_to_what_is_above_are_not_followed(tmp_path, draw, encode):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes(encode(draw()))
    try:
        (folder / "again").symlink_to(folder)
        (folder / "above").symlink_to(tmp_path)
    except OSError:
        pytest.skip("no links here")
    inventory = take_stock(folder)
    assert list(_taken(inventory)) == ["a.png"]
    assert {"again/", "above/"} <= _skipped(inventory).keys()


def test_what_says_that_it_is_empty_is_not_read(tmp_path, monkeypatch):
    """As the files that the system makes up, which may have no end."""
    monkeypatch.setattr("dreambooth_core.data.stocktaking.read_bytes", None)
    (tmp_path / "a.png").touch()
    found = look_at(tmp_path / "a.png")
    assert isinstance(found, Skipped)
    assert "empty" in found.reason


def test_a_mask_by_a_plain_name_is_never_trained_on(tmp_path, draw, encode):
    (tmp_path / "Cow.png").write_bytes(encode(draw(40, 30)))
    (tmp_path / "cow-mask.png").write_bytes(encode(Image.new("L", (40, 30), 255)))
    (tmp_path / "iron-mask.png").write_bytes(encode(draw(40, 30)))
    inventory = take_stock(tmp_path)
    taken = {picture.name: picture.mask for picture in inventory.taken}
    assert taken == {"Cow.png": tmp_path / "cow-mask.png", "iron-mask.png": None}
