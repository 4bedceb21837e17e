"""Pixels: scaled as torchvision-free DreamBooth scripts do, cut and mirrored exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dreambooth_core.data import images
from dreambooth_core.data.changes import Change
from dreambooth_core.data.plan import View, place, scaled
from dreambooth_core.data.stocktaking import look_at
from dreambooth_core.errors import UserError


def test_tensors_are_exact(draw):
    image = draw()
    tensor = images.to_tensor(image)
    assert tensor.shape == (3, 30, 40)
    assert tensor.dtype == torch.float32
    expected = np.asarray(image).transpose(2, 0, 1).astype(np.float64) / 127.5 - 1
    assert np.allclose(tensor.numpy(), expected, atol=1e-6)
    black_and_white = images.to_tensor(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)))
    assert black_and_white.flatten().tolist() == [-1, 1] * 3


@pytest.mark.parametrize("original", [(30, 40), (64, 64), (50, 71), (33, 80)])
@pytest.mark.parametrize("target", [(16, 16), (64, 48), (24, 32)])
def test_scaled_by_lanczos_then_cut(draw, original, target):
    image = draw(original[1], original[0])
    view = place(original, target, (0.3, 0.8))
    height, width = scaled(original, target)
    whole = image.resize((width, height), Image.Resampling.LANCZOS)
    right, bottom = view.left + view.width, view.top + view.height
    expected = whole.crop((view.left, view.top, right, bottom))
    assert np.array_equal(np.asarray(images.apply_view(image, view)), np.asarray(expected))


@pytest.mark.parametrize("original", [(300, 17), (20, 500)])
def test_a_strip_looks_the_same_though_only_its_part_is_scaled(original):
    across = np.linspace(0, 255, original[1])[None, :].repeat(original[0], 0)
    down = np.linspace(0, 255, original[0])[:, None].repeat(original[1], 1)
    image = Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8))
    view = place(original, (48, 48), (0.3, 0.8))
    assert images.is_strip(original, view.size)
    height, width = scaled(original, view.size)
    whole = image.resize((width, height), Image.Resampling.LANCZOS)
    right, bottom = view.left + view.width, view.top + view.height
    expected = np.asarray(whole.crop((view.left, view.top, right, bottom))).astype(int)
    assert np.abs(np.asarray(images.apply_view(image, view)) - expected).max() <= 2


def test_a_flip_mirrors_the_cut(draw):
    view = place((30, 40), (16, 16), (0.5, 0.1))
    plain = images.apply_view(draw(), view)
    mirrored = images.apply_view(draw(), View(*view.size, *view.crop, flip=True))
    assert np.array_equal(np.asarray(mirrored), np.asarray(plain)[:, ::-1])


@pytest.mark.parametrize("size", [(64, 64), (40, 96)])
@pytest.mark.parametrize("angle", [-12.0, 3.0, 45.0])
def test_what_is_turned_has_no_empty_corners(size, angle):
    white = Image.new("RGB", (size[1], size[0]), "white")
    found = images.turned(white, angle)
    assert found.size == white.size and found.getextrema() == ((255, 255),) * 3


def test_turning_is_counter_clockwise_and_of_masks_too():
    """What is right of the middle goes up; the light of a mask stays."""
    image = Image.new("L", (64, 64))
    image.paste(255, (48, 30, 52, 34))
    view = View(64, 64, change=Change(20.0, (0.5, 1.0, 1.0)))
    found = np.asarray(images.apply_view(image, view, Image.Resampling.BILINEAR)).astype(float)
    rows, columns = np.indices(found.shape)
    down, across = (rows * found).sum() / found.sum(), (columns * found).sum() / found.sum()
    away = 18 * images.zoom(view.size, 20.0)
    assert abs(across - (31.5 + away * np.cos(np.radians(20)))) < 0.6
    assert abs(down - (31.5 - away * np.sin(np.radians(20)))) < 0.6
    assert found.max() > 200


def test_light_changes_what_its_factors_say():
    image = Image.new("RGB", (2, 1), (100, 60, 20))
    image.putpixel((1, 0), (50, 50, 50))

    def of(*light):
        found = np.asarray(images.seen(image, View(1, 2, change=Change(light=light))))
        return [tuple(map(int, pixel)) for pixel in found[0]]

    assert of(1.0, 1.0, 1.0) == [(100, 60, 20), (50, 50, 50)]
    assert of(1.5, 1.0, 1.0) == [(150, 90, 30), (75, 75, 75)]
    first, second = of(1.0, 1.0, 0.0)
    assert len(set(first)) == 1 and second == (50, 50, 50)
    first, second = of(1.0, 0.0, 1.0)
    assert first == second


def test_a_long_strip_does_not_fill_the_memory(tmp_path):
    path = tmp_path / "strip.png"
    Image.new("RGB", (20000, 1), (9, 9, 9)).save(path)
    picture = look_at(path)
    tensor = images.pixels(picture, place((1, 20000), (256, 1024)))
    assert tensor.shape == (3, 256, 1024)


def test_a_picture_that_changed_or_went_is_named(tmp_path, draw, encode):
    path = tmp_path / "a.png"
    path.write_bytes(encode(draw()))
    picture = look_at(path)
    path.write_bytes(encode(draw(seed=1)))
    with pytest.raises(UserError, match="changed") as caught:
        images.pixels(picture, View(8, 8))
    assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        images.pixels(picture, View(8, 8))


def _masked(tmp_path, encode, *, alpha: bool, file: bool):
    from dreambooth_core.data.stocktaking import take_stock

    image = Image.new("RGBA", (40, 20), (50, 60, 70, 255))
    if alpha:
        image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    (tmp_path / "a.png").write_bytes(encode(image))
    if file:
        mask = Image.new("L", (80, 40), 0)
        mask.paste(255, (0, 0, 40, 40))
        (tmp_path / "a.mask.png").write_bytes(encode(mask))
    return take_stock(tmp_path).taken[0]


@pytest.mark.parametrize(
    ("alpha", "file", "source", "side"),
    [
        (True, True, "auto", "left"),
        (True, True, "files", "left"),
        (True, True, "alpha", "right"),
        (True, False, "auto", "right"),
        (False, True, "auto", "left"),
        (True, False, "files", None),
        (False, True, "alpha", None),
        (False, False, "auto", None),
        (True, True, "none", None),
    ],
)
def test_where_masks_come_from(tmp_path, encode, alpha, file, source, side):
    picture = _masked(tmp_path, encode, alpha=alpha, file=file)
    mask = images.mask(picture, View(20, 40), source, floor=0.25)
    if side is None:
        assert mask is None
        return
    assert mask.shape == (1, 20, 40)
    left, right = float(mask[0, 10, 5]), float(mask[0, 10, 35])
    assert (left, right) == ((1.0, 0.25) if side == "left" else (0.25, 1.0))


def test_a_mask_is_cut_as_its_picture(tmp_path, encode):
    picture = _masked(tmp_path, encode, alpha=False, file=True)
    # Away from the edge, which scaling blurs by a pixel.
    assert images.mask(picture, View(20, 20, 0, 0), "files")[..., :18].min() == 1
    assert images.mask(picture, View(20, 20, 0, 20), "files")[..., 2:].max() == 0
    half = images.mask(picture, View(20, 40, flip=True), "files")
    assert (float(half[0, 10, 5]), float(half[0, 10, 35])) == (0, 1)


def test_a_mask_at_the_latents_size_is_the_average():
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, :, :4] = 1
    small = images.latent_mask(mask)
    assert small.shape == (2, 1, 2, 2)
    assert small[0, 0, 0].tolist() == [0.5, 0]
    assert images.latent_mask(mask[0]).shape == (1, 2, 2)
