"""Drawn pictures of every kind that a folder may hold."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Draw = Callable[..., Image.Image]


def drawing(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A gradient with a block of noise: no two places of it are alike."""
    across = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    down = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width))
    return Image.fromarray(np.stack([across, down, noise], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **more: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def draw() -> Draw:
    """:func:`drawing`."""
    return drawing


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """:func:`encoded`."""
    return encoded


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of three shapes."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, (width, height) in enumerate(
        [(200, 200), (320, 160), (150, 310), (210, 200), (256, 256)]
    ):
        drawing(width, height, index).save(folder / f"{index:02}.png")
    return folder
