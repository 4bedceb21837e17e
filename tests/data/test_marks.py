"""``marks.json``: written, read strictly, and turned into images to train on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreambooth_core.data.concept_options import ConceptOptions, MarkOptions, PriorOptions
from dreambooth_core.data.concepts import Concept, gather, with_marks
from dreambooth_core.data.items import Items
from dreambooth_core.data.marks import Mark, read_marks, require_base, write_marks
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.plan import INSTANCE, RIVAL
from dreambooth_core.errors import UserError

GOOD_MARK: dict[str, Any] = {"image": "a.png", "prompt": "a dog", "seed": 1, "mark": "good"}


def write(folder: Path, *images: dict[str, Any], **changes: Any) -> Path:
    """A file of marks with whatever is asked for in it."""
    file = folder / "marks.json"
    file.write_text(json.dumps({"version": 1, "base": "b", "images": list(images), **changes}))
    return file


def drawn(folder: Path, *marks: tuple[str, str, str], size: int = 64) -> Path:
    """Generated images of a name, a prompt and a mark, and their file."""
    for n, (name, _, _) in enumerate(marks):
        Image.new("RGB", (size, size), (40 * n, 90, 10)).save(folder / name)
    found = [Mark(name, prompt, n, mark) for n, (name, prompt, mark) in enumerate(marks)]
    return write_marks(folder / "marks.json", "b", found).file


@pytest.fixture
def concepts(tmp_path: Path) -> list[Concept]:
    own = tmp_path / "own"
    own.mkdir()
    for n in range(2):
        Image.new("RGB", (64, 64), (n, 0, 0)).save(own / f"{n}.png")
    options = ConceptOptions(images=str(own), instance_prompt="a photo of sks dog")
    return gather([options], DataOptions(resolution=64), PriorOptions())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = drawn(tmp_path, ("a.png", "a dog", "good"), ("b.png", "a dog", ""))
    assert read_marks(tmp_path) == read_marks(file)
    marks = write_marks(file, "b", [Mark("b.png", "a dog", 1, "bad"), Mark("c.png", "x", 2, "")])
    assert read_marks(file) == marks
    before = file.stat()
    write_marks(file, "b", [Mark("b.png", "a dog", 1, "bad")])
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert [(one.image, one.mark) for one in marks.images] == [
        ("a.png", "good"),
        ("b.png", "bad"),
        ("c.png", ""),
    ]


def test_a_run_is_named_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    file = drawn(tmp_path / "samples", ("a.png", "a dog", "good"))
    assert read_marks(tmp_path).file == file


@pytest.mark.parametrize(
    ("image", "changes"),
    [
        ({**GOOD_MARK, "image": "../a.png"}, {}),
        ({**GOOD_MARK, "image": "/a.png"}, {}),
        ({**GOOD_MARK, "image": "C:\\a.png"}, {}),
        ({**GOOD_MARK, "image": "a\0.png"}, {}),
        ({**GOOD_MARK, "image": 3}, {}),
        ({**GOOD_MARK, "prompt": " "}, {}),
        ({**GOOD_MARK, "seed": True}, {}),
        ({**GOOD_MARK, "seed": -1}, {}),
        ({**GOOD_MARK, "mark": "fine"}, {}),
        ({**GOOD_MARK, "more": 1}, {}),
        (GOOD_MARK, {"version": 2}),
        (GOOD_MARK, {"base": ""}),
        (GOOD_MARK, {"images": {}}),
        (GOOD_MARK, {"more": 1}),
        (GOOD_MARK, {"images": [GOOD_MARK, GOOD_MARK]}),
    ],
)
def test_whatever_else_is_in_it_is_one_line(
    tmp_path: Path, image: dict[str, Any], changes: dict[str, Any]
) -> None:
    file = write(tmp_path, image, **changes)
    with pytest.raises(UserError) as caught:
        read_marks(file)
    assert str(file) in caught.value.line and "\n" not in caught.value.line


def test_marks_are_of_one_base(tmp_path: Path) -> None:
    file = drawn(tmp_path, ("a.png", "a dog", "good"))
    require_base(file, "b")
    for refuse in (lambda: require_base(file, "c"), lambda: write_marks(file, "c", [])):
        with pytest.raises(UserError, match="another base"):
            refuse()


def test_good_images_join_with_their_prompts_as_captions(
    concepts: list[Concept], tmp_path: Path
) -> None:
    marks = (("a.png", "sks dog at night", "good"), ("b.png", "sks dog in snow", "bad"))
    file = drawn(tmp_path, *marks)
    found = with_marks(concepts, MarkOptions(file=str(file)), pairs=False)
    items = Items(found, DataOptions(resolution=64), seed=0)
    assert items.all_captions() == ["a photo of sks dog", "sks dog at night"]
    assert [p.name for p in items.images] == ["0.png", "1.png", "a.png"]
    assert found[0].as_dict()["marked"] == {"joined": 1, "pairs": 0}
    assert found[0].showings == 3
    assert with_marks(concepts, MarkOptions(), pairs=False) == concepts


@pytest.mark.parametrize(("images", "own"), [("joined", 4), ("own", 2), ("none", 0)])
def test_pairs_are_of_one_prompt_and_every_image_is_in_one(
    concepts: list[Concept], tmp_path: Path, images: str, own: int
) -> None:
    file = drawn(
        tmp_path,
        ("a.png", "night", "good"),
        ("b.png", "night", "bad"),
        ("c.png", "night", "bad"),
        ("d.png", "snow", "good"),
        ("e.png", "rain", ""),
    )
    found = with_marks(concepts, MarkOptions(file=str(file), images=images), pairs=True)
    items = Items(found, DataOptions(resolution=64), seed=0)
    pairs = {(items.images[n].name, rival.name) for n, rival in items.rivals.items()}
    assert pairs == {("a.png", "b.png"), ("a.png", "c.png")}
    assert len(items.images) == own + 2
    assert "'snow'" in found[0].inventory.warnings[-1]

    plan = items.plan(batch_size=own + 2)
    group, count = items.in_pairs(plan.passes(0)[0][0])
    assert count == 2 and len(group) == own + 4
    good, bad, rest = group[:2], group[2:4], group[4:]
    assert [s.kind for s in bad] == [RIVAL] * 2 and {s.kind for s in (*good, *rest)} == {INSTANCE}
    # What noise and latents are keyed by, the caption and the view are the same.
    assert [(s.number, s.view) for s in good] == [(s.number, s.view) for s in bad]
    assert {items.caption(s) for s in (*good, *bad)} == {"night"}
    views = {(picture.name, view.key) for picture, view in items.views(plan)}
    assert {(items.image(s).name, s.view.key) for s in group} <= views
    assert items.held_out() is None


@pytest.mark.parametrize(
    ("marks", "pairs", "said"),
    [
        ((("a.png", "night", "good"), ("b.png", "snow", "bad")), True, "no pair"),
        ((("a.png", "night", "bad"),), False, "no image is marked good"),
    ],
)
def test_marks_that_teach_nothing_are_refused(
    concepts: list[Concept], tmp_path: Path, marks: Any, pairs: bool, said: str
) -> None:
    file = drawn(tmp_path, *marks)
    with pytest.raises(UserError, match=said):
        with_marks(concepts, MarkOptions(file=str(file), images="joined"), pairs=pairs)


def test_images_that_are_gone_or_of_several_sizes_are_refused(
    concepts: list[Concept], tmp_path: Path
) -> None:
    file = drawn(tmp_path, ("a.png", "night", "good"), ("b.png", "night", "bad"))
    options = MarkOptions(file=str(file), images="own")
    Image.new("RGB", (64, 32)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="different sizes"):
        with_marks(concepts, options, pairs=True)
    (tmp_path / "b.png").unlink()
    with pytest.raises(UserError, match=r"b\.png: no such file"):
        with_marks(concepts, options, pairs=True)
