"""Class images: only missing ones are made, and each is the same however it is made."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image

from dreambooth_core.data.concept_options import ConceptOptions, PriorOptions
from dreambooth_core.data.concepts import gather
from dreambooth_core.data.items import Items
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.prior import Recipe, find_class_images, make_missing, recipe_of
from dreambooth_core.errors import SaveFailed, Stopped, UserError

RECIPE = Recipe(base="abc", prompts=("a photo of a dog",), height=64, width=64)


class Maker:
    """Makes images whose colour is their seed's, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[tuple[str, int]]] = []

    def __call__(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        self.asked.append(list(zip(prompts, seeds, strict=True)))
        return [Image.new("RGB", (64, 64), (s % 256, s // 256 % 256, 7)) for s in seeds]

    @property
    def count(self) -> int:
        return sum(map(len, self.asked))


def _files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_a_second_run_makes_none(tmp_path):
    maker = Maker()
    state = find_class_images(RECIPE, 5, kept_in=tmp_path)
    assert state.missing == (0, 1, 2, 3, 4)
    seen: list[tuple[int, int]] = []
    assert make_missing(state, maker, batch_size=2, progress=lambda *n: seen.append(n)) == 5
    assert [len(batch) for batch in maker.asked] == [2, 2, 2]
    assert seen == [(2, 5), (4, 5), (5, 5)]
    again = find_class_images(RECIPE, 5, kept_in=tmp_path)
    assert again.missing == ()
    assert len(again.inventory.taken) == 5
    assert make_missing(again, maker) == 0
    assert maker.count == 6
    assert find_class_images(RECIPE, 7, kept_in=tmp_path).missing == (5, 6)
    assert find_class_images(RECIPE, 3, kept_in=tmp_path).missing == ()
    about = json.loads(next(state.folder.glob(".class-*.json")).read_text())
    assert about["prompts"] == ["a photo of a dog"]


@pytest.mark.parametrize(
    "change",
    [
        {"base": "other"},
        {"prompts": ("a cat",)},
        {"negative_prompt": "blurry"},
        {"height": 128},
        {"width": 128},
        {"steps": 20},
        {"guidance": 5.0},
        {"scheduler": "ddim"},
        {"precision": "fp16"},
        {"seed": 1},
    ],
)
def test_anything_else_is_made_anew(tmp_path, change):
    make_missing(find_class_images(RECIPE, 2, kept_in=tmp_path), Maker())
    assert find_class_images(replace(RECIPE, **change), 2, kept_in=tmp_path).missing == (0, 1)


class Company(Maker):
    """A maker whose images depend on what they are made together with, as kernels round."""

    def __call__(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        self.asked.append(list(zip(prompts, seeds, strict=True)))
        red, green = sum(seeds) % 256, len(seeds)
        return [Image.new("RGB", (64, 64), (red, green, seed % 256)) for seed in seeds]


@pytest.mark.parametrize("size", [1, 3])
def test_an_image_is_always_made_in_the_same_company(tmp_path, size):
    """Whatever the number of processes, an interruption, the repair of one, or how many more are
    wanted later."""
    folders = []
    for name, processes in {"one": 1, "two": 2}.items():
        state = find_class_images(RECIPE, 7, kept_in=tmp_path / name)
        asked = []
        for rank in range(processes):
            maker = Company()
            make_missing(state, maker, batch_size=size, rank=rank, processes=processes)
            asked += [one for batch in maker.asked for one in batch]
        assert len(asked) == len(set(asked))  # no process makes what another makes
        folders.append(state.folder)
    interrupted = find_class_images(RECIPE, 5, kept_in=tmp_path / "three")
    maker = Company()
    with pytest.raises(Stopped):
        make_missing(interrupted, maker, batch_size=size, stop=lambda: maker.count >= 3)
    (interrupted.folder / sorted(_files(interrupted.folder))[1]).unlink()
    rest = find_class_images(RECIPE, 7, kept_in=tmp_path / "three")
    assert rest.missing == (1, 3, 4, 5, 6)
    assert make_missing(rest, Company(), batch_size=size) == 5
    folders.append(rest.folder)
    first, *others = (_files(folder) for folder in folders)
    assert len(first) == len(set(first.values())) == 7
    assert all(other == first for other in others)


def test_a_damaged_or_removed_image_is_made_again(tmp_path):
    state = find_class_images(RECIPE, 4, kept_in=tmp_path)
    make_missing(state, Maker())
    good = _files(state.folder)
    names = sorted(good)
    (state.folder / names[1]).write_bytes(good[names[1]][:40])
    (state.folder / names[2]).unlink()
    rest = find_class_images(RECIPE, 4, kept_in=tmp_path)
    assert rest.missing == (1, 2)
    make_missing(rest, Maker())
    assert _files(state.folder) == good


def test_ones_own_folder_with_enough_is_used_as_it_is(tmp_path, draw, encode):
    own = tmp_path / "own"
    own.mkdir()
    for seed in range(3):
        (own / f"{seed}.jpg").write_bytes(encode(draw(seed=seed), "JPEG"))
    state = find_class_images(RECIPE, 3, kept_in=tmp_path / "kept", own_folder=own)
    assert state.missing == ()
    assert not (tmp_path / "kept").exists()
    more = find_class_images(RECIPE, 5, kept_in=tmp_path / "kept", own_folder=own)
    assert more.missing == (0, 1)
    make_missing(more, Maker())
    assert find_class_images(RECIPE, 5, kept_in=tmp_path, own_folder=own).missing == ()
    assert not (tmp_path / "kept").exists()
    other = find_class_images(replace(RECIPE, base="b"), 5, kept_in=tmp_path, own_folder=own)
    assert other.missing == ()
    assert "2 class images were generated by another base" in other.inventory.warnings[-1]
    fresh = find_class_images(RECIPE, 2, kept_in=tmp_path, own_folder=tmp_path / "not yet there")
    assert fresh.missing == (0, 1)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        find_class_images(RECIPE, 2, kept_in=tmp_path, own_folder=tmp_path / "x")


def test_a_failed_write_leaves_no_half_image(tmp_path, monkeypatch):
    state = find_class_images(RECIPE, 2, kept_in=tmp_path)
    make_missing(replace(state, missing=(0,)), Maker())

    def full(path, content):
        raise SaveFailed("could not save: the disk is full", where=path)

    monkeypatch.setattr("dreambooth_core.data.prior.write_bytes", full)
    with pytest.raises(SaveFailed, match="disk is full"):
        make_missing(find_class_images(RECIPE, 2, kept_in=tmp_path), Maker())
    assert len(_files(state.folder)) == 1
    assert find_class_images(RECIPE, 2, kept_in=tmp_path).missing == (1,)


def test_folder_names():
    assert RECIPE.folder_name.startswith("a-photo-of-a-dog-")
    assert replace(RECIPE, prompts=("собака / \\ ..",)).folder_name
    assert len(replace(RECIPE, prompts=("x" * 300,)).folder_name) < 60


def _concept(photos, **more):
    options = ConceptOptions(
        **{
            "images": str(photos),
            "instance_prompt": "sks dog",
            "class_prompt": "a dog",
            **more,
        }
    )
    prior = PriorOptions(
        enabled=True,
        num_class_images=6,
        num_inference_steps=3,
        guidance_scale=2.0,
        scheduler="ddim",
    )
    data = DataOptions(resolution=128, height=64)
    (concept,) = gather([options], data, prior)
    return concept, prior, data


def test_a_recipe_takes_up_every_option(photos):
    concept, prior, data = _concept(photos)
    prior.negative_prompt, prior.seed, prior.precision = "blurry", 9, "fp32"
    assert recipe_of(concept, prior, data, "base") == Recipe(
        base="base",
        prompts=("a dog",),
        negative_prompt="blurry",
        height=64,
        width=128,
        steps=3,
        guidance=2.0,
        scheduler="ddim",
        precision="fp32",
        seed=9,
    )


def test_class_prompts_that_follow_the_subjects_words(tmp_path, photos):
    for index, path in enumerate(sorted(photos.glob("*.png"))):
        path.with_suffix(".txt").write_text(f"place {index % 3}")
    concept, prior, data = _concept(photos, class_prompt="a dog, [filewords]")
    recipe = recipe_of(concept, prior, data, "base")
    assert recipe.prompts == ("a dog, place 0", "a dog, place 1", "a dog, place 2")
    state = find_class_images(recipe, concept.class_images_wanted, kept_in=tmp_path / "kept")
    maker = Maker()
    make_missing(state, maker, batch_size=1)
    assert [prompt for batch in maker.asked for prompt, _ in batch] == list(recipe.prompts) * 2
    state = find_class_images(recipe, concept.class_images_wanted, kept_in=tmp_path / "kept")
    assert state.missing == ()
    items = Items([replace(concept, class_inventory=state.inventory)], data, seed=0)
    assert items.class_captions == list(recipe.prompts) * 2
