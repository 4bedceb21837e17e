"""Concepts are checked before anything is loaded; items are what their slots say."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dreambooth_core.data import images
from dreambooth_core.data.concept_options import ConceptOptions, PriorOptions
from dreambooth_core.data.concepts import gather, read_concepts_list
from dreambooth_core.data.items import Items
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.stocktaking import take_stock
from dreambooth_core.errors import UserError

OFF, ON = PriorOptions(), PriorOptions(enabled=True, num_class_images=2)


def _concept(folder, **more) -> ConceptOptions:
    values = {"instance_prompt": "a photo of sks dog", "class_prompt": "a photo of a dog", **more}
    return ConceptOptions(images=str(folder), **values)


def _items(folder, *, class_folder=None, data=None, prior=None, **more) -> Items:
    data = data or DataOptions(resolution=64)
    concepts = gather([_concept(folder, **more)], data, prior or OFF)
    if class_folder is not None:
        concepts = [replace(c, class_inventory=take_stock(class_folder)) for c in concepts]
    return Items(concepts, data, seed=1)


@pytest.fixture
def class_folder(tmp_path, draw, encode):
    folder = tmp_path / "class"
    folder.mkdir()
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(encode(draw(64, 64, seed=50 + seed)))
    return folder


@pytest.mark.parametrize(
    ("change", "data", "prior", "where", "what"),
    [
        ({"images": ""}, {}, OFF, "concepts[0].images", "no folder"),
        ({"class_prompt": " "}, {}, ON, "concepts[0].class_prompt", "needs a class prompt"),
        ({"instance_prompt": ""}, {}, OFF, "concepts[0].instance_prompt", "has no caption"),
        (
            {"instance_prompt": ""},
            {"captions": "prompt"},
            OFF,
            "concepts[0].instance_prompt",
            "is empty",
        ),
    ],
)
def test_what_is_wrong_with_a_concept_is_said(photos, change, data, prior, where, what):
    options = _concept(photos)
    for name, value in change.items():
        setattr(options, name, value)
    with pytest.raises(UserError, match=what) as caught:
        gather([options], DataOptions(**data), prior)
    assert caught.value.where == where


def test_no_concepts():
    with pytest.raises(UserError, match="no concept"):
        gather([], DataOptions(), OFF)


def test_class_pictures_may_not_be_the_subjects(photos):
    with pytest.raises(UserError, match="folder of the subject's images"):
        gather([_concept(photos, class_images=str(photos))], DataOptions(), ON)
    inside = photos / "class"
    inside.mkdir()
    (photos / "00.png").rename(inside / "00.png")
    (found,) = gather([_concept(photos, class_images=str(inside))], DataOptions(), ON)
    assert len(found.images) == 4


def test_warnings_about_prompts(photos):
    same = _concept(photos, class_prompt="a photo of sks dog")
    (photos / "00.txt").write_text("a photo of sks dog on grass")
    (found,) = gather([same], DataOptions(captions="files"), OFF)
    text = "\n".join(found.inventory.warnings)
    assert "are the same" in text
    assert "4 images have no caption file" in text


def test_captions_of_their_own_need_no_prompt(photos):
    for path in list(photos.iterdir()):
        path.with_suffix(".txt").write_text(f"picture {path.stem}")
    items = _items(photos, instance_prompt="")
    plan = items.plan(batch_size=5)
    texts = {items.caption(slot) for step in range(3) for slot in plan.slots(step)}
    assert texts == {f"picture {i:02}" for i in range(5)}
    assert set(items.all_captions()) == texts


def test_an_item_is_its_slot(photos, class_folder):
    items = _items(photos, class_folder=class_folder, prior=ON)
    plan = items.plan(batch_size=2)
    seen = set()
    for step in range(plan.steps_per_epoch):
        for slot in plan.slots(step):
            picture = items.image(slot)
            seen.add(picture.path.parent.name)
            original = (picture.height, picture.width)
            assert items.sizes(slot) == (original, slot.view.crop, slot.size)
            wanted = "a photo of sks dog" if slot.kind == "instance" else "a photo of a dog"
            assert items.caption(slot) == wanted
            pixels = items.pixels(picture, slot.view)
            assert pixels.shape == (3, *slot.size)
            assert torch.equal(pixels, images.pixels(picture, slot.view))
    assert seen == {"photos", "class"}
    assert len(items.class_images) == 2  # as many as are wanted, though three are there
    assert items.all_captions() == ["a photo of sks dog", "a photo of a dog"]
    assert items.first_captions() == {
        "instance": "a photo of sks dog",
        "class": "a photo of a dog",
    }


def test_a_cache_is_told_all_views_and_what_pixels_depend_on(photos, class_folder):
    data = DataOptions(resolution=64, flip=True)
    items = _items(photos, class_folder=class_folder, data=data, prior=ON)
    plan = items.plan(batch_size=3)
    views = items.views(plan)
    assert len(views) == 2 * (5 + 2)
    for step in range(6):
        for slot in plan.slots(step):
            assert (items.image(slot), slot.view) in views
    other = _items(photos, data=DataOptions(resolution=64, background="black"))
    assert items.recipe != other.recipe


def test_buckets_follow_the_shapes(photos):
    items = _items(photos, data=DataOptions(resolution=128))
    assert [entry.size for entry in items.entries] == [
        (128, 128),
        (64, 256),
        (256, 64),
        (128, 128),
        (128, 128),
    ]
    report = json.loads(json.dumps(items.as_dict()))
    assert report["buckets"] == {"128x128": 3, "256x64": 1, "64x256": 1}


def test_masks_are_for_the_subject_alone(photos, class_folder, encode):
    from PIL import Image

    for folder in (photos, class_folder):
        for path in list(folder.glob("*.png")):
            half = Image.new("L", (64, 64), 0)
            half.paste(255, (0, 0, 32, 64))
            path.with_suffix(".mask.png").write_bytes(encode(half))
    data = DataOptions(resolution=64, masks="auto", unmasked_weight=0.5, crop="center")
    items = _items(photos, class_folder=class_folder, data=data, prior=ON)
    for slot in items.plan(batch_size=5).slots(0):
        mask = items.mask(slot)
        if slot.kind == "class":
            assert mask is None
        else:
            assert (float(mask[0, 32, 2]), float(mask[0, 32, 61])) == (1.0, 0.5)
    without = _items(photos, data=DataOptions(resolution=64))
    assert without.mask(without.plan(batch_size=1).slots(0)[0]) is None


def test_warnings_about_pictures(tmp_path, draw, encode):
    for name, size in {"small": (20, 20), "long": (400, 90), "good": (200, 200)}.items():
        (tmp_path / f"{name}.png").write_bytes(encode(draw(*size)))
    data = DataOptions(resolution=128, crop="center", masks="files")
    text = "\n".join(_items(tmp_path, data=data).warnings())
    assert "small.png is small and is enlarged 6.4 times" in text
    assert "of long.png is cut away" in text
    assert "good.png has no mask" in text
    assert "good.png is" not in text


def test_repeats_multiply_and_concepts_can_be_balanced(tmp_path, draw, encode):
    for name, count in {"many": 6, "few/2_x": 1}.items():
        (tmp_path / name).mkdir(parents=True)
        for seed in range(count):
            (tmp_path / name / f"{seed}.png").write_bytes(encode(draw(64, 64, seed=seed)))
    concepts = gather(
        [_concept(tmp_path / "many"), _concept(tmp_path / "few", repeats=3, name="few")],
        DataOptions(resolution=64),
        OFF,
    )
    assert [concept.showings for concept in concepts] == [6, 6]
    assert [concept.name for concept in concepts] == ["a photo of sks dog", "few"]
    concepts = gather([_concept(tmp_path / "many"), _concept(tmp_path / "few")], DataOptions(), OFF)
    for balance, expected in ((False, [6, 2]), (True, [6, 6])):
        data = DataOptions(resolution=64, balance_concepts=balance)
        plan = Items(concepts, data, seed=0).plan(batch_size=3)
        slots = [slot for step in range(plan.steps_per_epoch) for slot in plan.slots(step)]
        assert [sum(slot.concept == c for slot in slots) for c in (0, 1)] == expected


def test_class_pictures_belong_to_their_concept(tmp_path, draw, encode):
    concepts = []
    for index in range(2):
        for kind in ("subject", "class"):
            folder = tmp_path / f"{kind}{index}"
            folder.mkdir()
            for seed in range(3):
                (folder / f"{seed}.png").write_bytes(encode(draw(64, 64, seed=seed)))
        concepts.append(
            _concept(
                tmp_path / f"subject{index}",
                instance_prompt=f"subject {index}",
                class_prompt=f"class {index}",
                num_class_images=index + 1,
            )
        )
    data = DataOptions(resolution=64)
    found = [
        replace(concept, class_inventory=take_stock(tmp_path / f"class{concept.index}"))
        for concept in gather(concepts, data, ON)
    ]
    items = Items(found, data, seed=0)
    assert len(items.class_images) == 1 + 2
    plan = items.plan(batch_size=2)
    for step in range(2 * plan.steps_per_epoch):
        for slot in plan.slots(step):
            kind = "subject" if slot.kind == "instance" else "class"
            assert items.caption(slot) == f"{kind} {slot.concept}"
            assert items.image(slot).path.parent.name == f"{kind}{slot.concept}"
    assert items.first_captions() == {
        "instance 1": "subject 0",
        "instance 2": "subject 1",
        "class 1": "class 0",
        "class 2": "class 1",
    }


def _list(tmp_path, content) -> object:
    path = tmp_path / "concepts_list.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_concepts_list(tmp_path):
    (tmp_path / "data" / "dog").mkdir(parents=True)
    content = [
        {
            "instance_prompt": "photo of zwx dog",
            "class_prompt": "photo of a dog",
            "instance_data_dir": "data/dog",
            "class_data_dir": "/somewhere/class dog",
        },
        {"instance_prompt": "b", "instance_data_dir": "/x", "num_class_images": 7, "name": None},
    ]
    first, second = read_concepts_list(_list(tmp_path, content))
    assert first == ConceptOptions(
        images=str(tmp_path / "data" / "dog"),
        instance_prompt="photo of zwx dog",
        class_prompt="photo of a dog",
        class_images="/somewhere/class dog",
    )
    assert (second.images, second.num_class_images, second.class_prompt) == ("/x", 7, "")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "too deeply"),
        ({}, "not a list"),
        ([], "not a list"),
        (["x"], "an object"),
        ([{"instance_promt": "a"}], "Did you mean instance_prompt"),
        ([{"zzz": "a"}], "Known: instance_prompt"),
        ([{"instance_prompt": 3}], "not a text"),
        ([{"repeats": "3"}], "whole number"),
        ([{"instance_prompt": "a"}], "instance_data_dir is missing"),
    ],
)
def test_a_wrong_concepts_list(tmp_path, content, what):
    with pytest.raises(UserError, match=what) as caught:
        read_concepts_list(_list(tmp_path, content))
    assert "concepts_list.json" in caught.value.line


def test_a_concepts_list_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_concepts_list(tmp_path / "none.json")
