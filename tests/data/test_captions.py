"""Captions: the prompt, the file beside the picture, tags in a keyed order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.captions import (
    Captioner,
    caption_of,
    fill,
    read_caption,
    vary_tags,
    words_of,
)
from dreambooth_core.data.inventory import ImageFile
from dreambooth_core.data.options import DataOptions
from dreambooth_core.errors import UserError

PROMPT = "a photo of sks dog"


def _picture(name: str = "012_red-ball_park.png", caption: Path | None = None) -> ImageFile:
    return ImageFile(Path(name), name, 8, 8, "hash", caption=caption)


@pytest.fixture
def captioned(tmp_path: Path) -> ImageFile:
    path = tmp_path / "a.txt"
    path.write_text("sks dog, grass, sun\n", encoding="utf-8")
    return _picture("7_a_dog.png", path)


@pytest.mark.parametrize(
    ("mode", "prompt", "expected"),
    [
        ("auto", PROMPT, "sks dog, grass, sun"),
        ("auto", "photo, [filewords]", "photo, sks dog, grass, sun"),
        ("prompt", PROMPT, PROMPT),
        ("prompt", "photo, [filewords]", "photo, sks dog, grass, sun"),
        ("files", PROMPT, "sks dog, grass, sun"),
        ("filewords", PROMPT, "sks dog, grass, sun"),
        ("filewords", "photo, [filewords]", "photo, sks dog, grass, sun"),
    ],
)
def test_with_a_caption_file(captioned, mode, prompt, expected):
    assert caption_of(captioned, prompt, mode) == expected


@pytest.mark.parametrize(
    ("mode", "prompt", "expected"),
    [
        ("auto", PROMPT, PROMPT),
        ("prompt", PROMPT, PROMPT),
        ("files", PROMPT, PROMPT),
        ("filewords", PROMPT, "red-ball park"),
        ("auto", "[filewords] of [name]", "red-ball park of bob"),
    ],
)
def test_without_one(mode, prompt, expected):
    assert caption_of(_picture(), prompt, mode, name="bob") == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("012_red_ball.png", "red ball"),
        ("0001.jpg", ""),
        ("3d_render.png", "3d render"),
        ("2024-05-01 my dog.jpg", "my dog"),
        ("IMG_1234.JPG", "IMG 1234"),
        ("собака.png", "собака"),
    ],
)
def test_words_of_a_file_name(name, words):
    assert words_of(_picture(name)) == words


def test_no_words_leave_no_gap():
    assert fill("a photo of [name], [filewords]", name="sks") == "a photo of sks"
    assert fill("[filewords], a photo") == "a photo"
    assert fill("a {} in [filewords] style", prompt="dog") == "a dog in style"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"\xef\xbb\xbfa dog\r\nin grass\r\n", "a dog in grass"),
        ("ein Hündchen".encode(), "ein Hündchen"),
        ("ein Hündchen".encode("utf-16"), "ein Hündchen"),
        ("ein Hündchen".encode("latin-1"), "ein Hündchen"),
        (b"  \n", ""),
        (b"a\0b", "a b"),
    ],
)
def test_encodings(tmp_path, content, text):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    assert read_caption(path) == text


def test_a_missing_or_empty_file_falls_back(tmp_path):
    (tmp_path / "a.txt").write_text("")
    assert read_caption(tmp_path / "none.txt") == ""
    assert caption_of(_picture("a.png", tmp_path / "a.txt"), PROMPT) == PROMPT


TAGS = st.lists(
    st.text(st.characters(categories=["L"]), min_size=1, max_size=4), max_size=8, unique=True
)


@settings(deadline=None)
@given(tags=TAGS, keep=st.integers(0, 9), seed=st.integers(0, 99))
def test_shuffling_keeps_every_tag_and_the_first_ones_in_place(tags, keep, seed):
    got = vary_tags(", ".join(tags), seed, shuffle=True, keep=keep)
    parts = got.split(", ") if got else []
    assert sorted(parts) == sorted(tags)
    assert parts[:keep] == tags[:keep]
    assert got == vary_tags(", ".join(tags), seed, shuffle=True, keep=keep)


@settings(deadline=None)
@given(tags=TAGS, keep=st.integers(0, 9), dropout=st.floats(0, 1), seed=st.integers(0, 99))
def test_dropout_keeps_the_order_and_the_first_ones(tags, keep, dropout, seed):
    got = vary_tags(", ".join(tags), seed, keep=keep, dropout=dropout)
    parts = got.split(", ") if got else []
    assert parts == [tag for tag in tags if tag in parts]
    assert parts[:keep] == tags[:keep]
    assert bool(parts) == bool(tags)


def test_dropout_drops_its_share():
    tags = ", ".join(f"t{i}" for i in range(20))
    left = sum(len(vary_tags(tags, seed, dropout=0.3).split(", ")) for seed in range(200))
    assert 0.66 < left / 4000 < 0.74


def test_draws_differ_by_epoch_picture_and_turn_and_by_nothing_else():
    options = DataOptions(shuffle_caption=True)
    text = ", ".join("abcdefgh")
    captioner = Captioner([text, text], options, seed=3)
    seen = {
        captioner.caption(picture, epoch, turn)
        for picture in range(2)
        for epoch in range(5)
        for turn in range(2)
    }
    assert len(seen) == 20
    again = Captioner([text, text], options, seed=3)
    assert again.caption(1, 4, 1) == captioner.caption(1, 4, 1)
    assert Captioner([text], options, seed=4).caption(0, 0) != captioner.caption(0, 0)


def test_caption_dropout():
    captioner = Captioner([PROMPT], DataOptions(caption_dropout_rate=0.25), seed=0)
    texts = [captioner.caption(0, epoch) for epoch in range(1000)]
    assert set(texts) == {"", PROMPT}
    assert 200 < texts.count("") < 300
    assert captioner.all_captions() == [PROMPT, ""]


def test_templates():
    options = DataOptions(templates=["a rendering of {}", "[name]: [prompt], [filewords]"])
    captioner = Captioner(["dog"], options, seed=0, words=["grass"], names=["bob"])
    both = {"a rendering of dog", "bob: dog, grass"}
    assert {captioner.caption(0, epoch) for epoch in range(40)} == both
    assert set(captioner.all_captions()) == both


@settings(deadline=None)
@given(
    texts=st.lists(st.sampled_from(["a, b", "c", PROMPT]), min_size=1, max_size=4),
    dropout=st.sampled_from([0.0, 0.5]),
    templates=st.lists(st.sampled_from(["x {}", "[prompt]", "y"]), max_size=3),
)
def test_every_caption_that_comes_up_was_listed(texts, dropout, templates):
    options = DataOptions(caption_dropout_rate=dropout, templates=templates)
    captioner = Captioner(texts, options, seed=1)
    listed = captioner.all_captions()
    assert len(listed) == len(set(listed))
    for picture in range(len(texts)):
        for epoch in range(8):
            assert captioner.caption(picture, epoch) in listed


def test_captions_without_end_are_not_listed():
    assert Captioner(["a"], DataOptions(shuffle_caption=True), seed=0).all_captions() is None
    assert (
        Captioner(["a"], DataOptions(caption_tag_dropout_rate=0.1), seed=0).all_captions() is None
    )


def test_a_caption_longer_than_any_is_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"tag, " * 20_000)
    with pytest.raises(UserError, match="more than 64,000 bytes"):
        read_caption(path)
