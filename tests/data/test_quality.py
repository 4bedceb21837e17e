"""What is told of images that can be used but had better not be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from dreambooth_core.data.quality import examine
from dreambooth_core.data.stocktaking import take_stock


def scene(seed: int = 0) -> Image.Image:
    """Something with edges and texture, about as busy as a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8))
    image = coarse.resize((640, 480), Image.Resampling.NEAREST)
    noise = Image.fromarray(random.integers(0, 255, (480, 640, 3), dtype=np.uint8))
    return Image.blend(image, noise, 0.1)


def found(folder: Path) -> list[tuple[str, str]]:
    return [(one.name, one.what) for one in examine(take_stock(folder).taken)]


def test_good_images_have_nothing_told_of_them(tmp_path: Path) -> None:
    for seed in range(4):
        scene(seed).save(tmp_path / f"{seed}.png")
    white = Image.new("RGB", (300, 300), "white")
    white.paste(scene(9).resize((120, 120)), (90, 90))
    white.save(tmp_path / "on-white.png")
    assert found(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("blurred", "looks blurred"),
        ("dark", "is very dark"),
        ("bright", "is very bright"),
        ("empty", "shows hardly anything"),
    ],
)
def test_bad_images_are_named(tmp_path: Path, name: str, words: str) -> None:
    image = {
        "blurred": lambda: scene().filter(ImageFilter.GaussianBlur(12)),
        "dark": lambda: ImageEnhance.Brightness(scene()).enhance(0.15),
        "bright": lambda: Image.blend(scene(), Image.new("RGB", (640, 480), "white"), 0.85),
        "empty": lambda: Image.new("RGB", (640, 480), (90, 120, 90)),
    }[name]()
    image.save(tmp_path / f"{name}.png")
    assert found(tmp_path) == [(f"{name}.png", words)]


def test_versions_of_one_image_are_found(tmp_path: Path) -> None:
    scene(1).save(tmp_path / "a.png")
    scene(1).resize((320, 240)).save(tmp_path / "b.jpg", quality=70)
    ImageEnhance.Brightness(scene(1)).enhance(0.8).save(tmp_path / "c.png")
    scene(2).save(tmp_path / "d.png")
    (tmp_path / "e.png").write_bytes((tmp_path / "d.png").read_bytes())
    assert found(tmp_path) == [
        ("b.jpg", "is nearly the same image as a.png"),
        ("c.png", "is nearly the same image as a.png"),
    ]
