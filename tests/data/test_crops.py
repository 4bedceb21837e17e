"""Crops: only the part is trained on, with its mask, and never what was cached of the whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from dreambooth_core.data import images
from dreambooth_core.data.cache import LatentCache, MemoryStore
from dreambooth_core.data.concept_options import ConceptOptions, PriorOptions
from dreambooth_core.data.concepts import gather
from dreambooth_core.data.crops import Crop, crop_of, file_for, read_crop, write_crop
from dreambooth_core.data.items import Items
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.saliency import Wish, suggest
from dreambooth_core.data.stocktaking import take_stock
from dreambooth_core.errors import UserError

RIGHT = Crop(0.5, 0.0, 1.0, 1.0)


def items_of(folder: Path, **data: object) -> Items:
    options = DataOptions(resolution=64, **data)  # type: ignore[arg-type]
    concepts = gather([ConceptOptions(str(folder), "a dog")], options, PriorOptions())
    return Items(concepts, options, seed=1)


def test_training_sees_the_part_and_its_mask(photos: Path) -> None:
    """As if the file had been cropped by hand: buckets, pixels, mask, sizes for SDXL."""
    mask = np.tile(np.arange(320, dtype=np.uint8)[None], (160, 1))
    Image.fromarray(mask).save(photos / "01.mask.png")
    by_hand = photos.parent / "by hand"
    by_hand.mkdir()
    for name in ("01.png", "01.mask.png"):
        with Image.open(photos / name) as whole:
            whole.crop((160, 0, 320, 160)).save(by_hand / name)
    write_crop(file_for(photos / "01.png"), RIGHT)
    cropped, hand = items_of(photos, masks="auto"), items_of(by_hand, masks="auto")
    assert cropped.images[1].size == (160, 160) and cropped.images[0].size == (200, 200)
    slot = next(s for n in range(9) for s in cropped.plan(batch_size=1).slots(n) if s.image == 1)
    own = hand.plan(batch_size=1).slots(0)[0]
    assert cropped.sizes(slot)[0] == hand.sizes(own)[0] == (160, 160)
    assert torch.equal(
        cropped.pixels(cropped.images[1], slot.view), hand.pixels(hand.images[0], own.view)
    )
    ours, theirs = cropped.mask(slot), hand.mask(own)
    assert ours is not None and theirs is not None and torch.equal(ours, theirs)
    told = cropped.as_dict()["concepts"][0]["images"]["taken"]
    assert [one["name"] for one in told if "crop" in one] == ["01.png"]


def test_what_was_cached_of_the_whole_is_not_taken(photos: Path) -> None:
    encoded = []

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(pixels)
        return pixels, pixels

    store = MemoryStore()
    before = take_stock(photos)

    def fill() -> None:
        items = items_of(photos)
        cache = LatentCache(encode, "vae", store, pixels=items.pixels)
        cache.fill(items.views(items.plan(batch_size=1)))

    fill()
    assert len(encoded) == 5
    write_crop(file_for(photos / "00.png"), Crop(0.1, 0.1, 0.9, 0.9))
    fill()
    assert len(encoded) == 6 and not torch.equal(encoded[0], encoded[5])
    assert take_stock(photos).fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[0, 0, 1, 1]",
        '{"left": 0, "top": 0, "right": 1}',
        '{"left": 0, "top": 0, "right": 1, "bottom": 1, "more": 1}',
        '{"left": 0.5, "top": 0, "right": 0.5, "bottom": 1}',
        '{"left": 0.9, "top": 0, "right": 0.1, "bottom": 1}',
        '{"left": -0.1, "top": 0, "right": 1, "bottom": 1}',
        '{"left": 0, "top": 0, "right": 64, "bottom": 64}',
        '{"left": "0", "top": 0, "right": 1, "bottom": 1}',
        '{"left": true, "top": 0, "right": 1, "bottom": 1}',
        '{"left": NaN, "top": 0, "right": 1, "bottom": 1}',
        '{"left": 0, "left": 0, "top": 0, "right": 1, "bottom": 1}',
        '{"left": 0, "top": 0, "right": 1e999, "bottom": 1}',
        '{"left": 0, "top": 0, "right": 1, "bottom": 1}' + " " * 5000,
    ],
)
def test_strange_crops_are_refused(photos: Path, text: str) -> None:
    """Training on the whole image would not be what was asked for."""
    file = photos / "00.crop.json"
    file.write_text(text)
    with pytest.raises(UserError, match="this crop cannot be used") as caught:
        take_stock(photos)
    assert caught.value.where == str(file)
    assert take_stock(photos, crops=False).taken[0].crop_file == file


def test_names(photos: Path) -> None:
    """By the whole name before the stem; the rest is told as unused, as captions are."""
    write_crop(photos / "00.crop.json", RIGHT)
    write_crop(photos / "00.png.crop.json", Crop(0, 0, 0.25, 1))
    write_crop(photos / "01.crop.json", RIGHT)
    write_crop(photos / "gone.crop.json", RIGHT)
    found = take_stock(photos)
    assert [one.size for one in found.taken[:2]] == [(200, 50), (160, 160)]
    reasons = {one.name: one.reason for one in found.skipped}
    assert set(reasons.values()) == {"a crop without an image of its name"}
    assert set(reasons) == {"00.crop.json", "gone.crop.json"}
    with pytest.raises(UserError, match="four numbers"):
        crop_of([0, 0, 1])
    assert read_crop(photos / "01.crop.json") == RIGHT
    assert Crop(0.999, 0.999, 1, 1).box(10, 10) == (9, 9, 10, 10)


def photograph(subject: tuple[int, int, int, int], colour: str = "orange") -> Image.Image:
    """Sky above, grass below, each with its noise, and a ball."""
    pixels = np.zeros((200, 300, 3))
    pixels[:110] = (120, 170, 230)
    pixels[110:] = (60, 130, 50)
    pixels += np.random.default_rng(0).normal(0, 12, pixels.shape)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse(subject, fill=colour)
    return image


@pytest.mark.parametrize(
    "subject", [(30, 40, 90, 100), (120, 60, 200, 140), (200, 120, 280, 199), (110, 90, 150, 130)]
)
def test_what_stands_out_is_suggested(subject: tuple[int, int, int, int]) -> None:
    """The ball, also where it touches an edge, with a margin, and little else."""
    found = suggest(photograph(subject), Wish(margin=0.1))
    assert found is not None
    left, top, right, bottom = found.box(300, 200)
    assert left <= subject[0] + 3 and top <= subject[1] + 3
    assert right >= subject[2] - 3 and bottom >= subject[3] - 3
    side = subject[2] - subject[0]
    assert right - left < 1.5 * side and bottom - top < 1.5 * side


def test_wishes_and_masks() -> None:
    image = photograph((120, 60, 200, 140))
    wide = suggest(image, Wish(ratio=1.5))
    assert wide is not None
    left, top, right, bottom = wide.box(300, 200)
    assert abs((right - left) / (bottom - top) - 1.5) < 0.03
    large = suggest(image, Wish(least=150))
    assert large is not None and min(large.size(300, 200)) == 150
    mask = Image.new("L", image.size)
    mask.paste(255, (0, 0, 60, 50))
    marked = suggest(image, Wish(margin=0), mask)
    assert marked is not None and marked.box(300, 200) == (0, 0, 60, 50)


def test_where_nothing_stands_out_nothing_is_suggested() -> None:
    assert suggest(photograph((0, 0, 0, 0), "skyblue"), Wish()) is None
    assert suggest(Image.new("RGB", (50, 50), "red"), Wish()) is None
    assert suggest(Image.new("RGB", (2, 900), "red"), Wish()) is None
    assert suggest(photograph((5, 5, 295, 195)), Wish()) is None  # nearly all of it
    assert suggest(photograph((9, 9, 90, 90)), Wish(), Image.new("L", (300, 200))) is None


def test_masks_of_cropped_images_are_cut_along(photos: Path) -> None:
    alpha = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    alpha.paste((0, 0, 0, 0), (20, 0, 40, 20))
    alpha.save(photos / "alpha.png")
    (photos / "alpha.png.crop.json").write_text(
        json.dumps({"left": 0.25, "top": 0, "right": 0.75, "bottom": 1})
    )
    picture = next(one for one in take_stock(photos).taken if one.name == "alpha.png")
    mask = images.load_mask(picture)
    assert mask is not None and mask.size == (20, 20)
    assert (mask.getpixel((9, 0)), mask.getpixel((10, 0))) == (255, 0)
