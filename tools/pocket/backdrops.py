"""The nine backgrounds, each a function of a seeded generator."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .world import RGB, jitter


def _flat(rgb: RGB, side: int, rng: random.Random, amount: int) -> Image.Image:
    return Image.new("RGB", (side, side), jitter(rgb, rng, amount))


def _gradient(top: RGB, bottom: RGB, side: int) -> Image.Image:
    ramp = np.linspace(0.0, 1.0, 64)[:, None]
    rows = np.array(top) * (1 - ramp) + np.array(bottom) * ramp
    column = Image.fromarray(rows.round().astype(np.uint8)[:, None, :], "RGB")
    return column.resize((side, side), Image.Resampling.BILINEAR)


def _white(side: int, rng: random.Random) -> Image.Image:
    level = rng.randint(240, 255)
    return Image.new("RGB", (side, side), (level, level, level))


def _gray(side: int, rng: random.Random) -> Image.Image:
    level = rng.randint(125, 165)
    return Image.new("RGB", (side, side), (level, level, level))


def _purple(side: int, rng: random.Random) -> Image.Image:
    return _flat((150, 92, 200), side, rng, 12)


def _sky(side: int, rng: random.Random) -> Image.Image:
    picture = _gradient(jitter((96, 170, 238), rng, 10), jitter((178, 216, 250), rng, 8), side)
    small = Image.new("L", (64, 64), 0)
    draw = ImageDraw.Draw(small)
    for _ in range(rng.randint(3, 5)):
        x, y = rng.randint(0, 63), rng.randint(2, 60)
        for _ in range(3):
            a, b = x + rng.randint(-6, 6), y + rng.randint(-2, 2)
            w, h = rng.randint(5, 9), rng.randint(2, 4)
            draw.ellipse((a - w, b - h, a + w, b + h), fill=235)
    cover = small.filter(ImageFilter.GaussianBlur(1.6)).resize((side, side))
    picture.paste((252, 253, 255), (0, 0), cover)
    return picture


def _grass(side: int, rng: random.Random) -> Image.Image:
    picture = _gradient(jitter((104, 176, 66), rng, 10), jitter((64, 136, 42), rng, 10), side)
    draw = ImageDraw.Draw(picture)
    for _ in range(150):
        x, y = rng.randint(0, side), rng.randint(0, side + 10)
        green = rng.randint(112, 206)
        length = side * rng.uniform(0.05, 0.10)
        tip = (x + rng.uniform(-0.03, 0.03) * side, y - length)
        draw.line(((x, y), tip), fill=(green // 2, green, green // 4), width=max(1, side // 75))
    return picture


def _sand(side: int, rng: random.Random) -> Image.Image:
    picture = _flat((230, 204, 152), side, rng, 8)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(5, 7)):
        y, bend = rng.uniform(0, side), rng.uniform(-0.06, 0.06) * side
        middle = (side * rng.uniform(0.3, 0.7), y + bend)
        line = ((0, y), (side * 0.2, y + bend * 0.7), middle, (side * 0.8, y + bend * 0.7))
        draw.line((*line, (side, y)), fill=(206, 174, 118), width=max(1, side // 60))
    grain = side // 128 or 1
    for _ in range(90):
        x, y = rng.randint(0, side), rng.randint(0, side)
        draw.ellipse((x, y, x + grain, y + grain), fill=(186, 152, 100))
    return picture


def _brick(side: int, rng: random.Random) -> Image.Image:
    picture = _flat((206, 194, 180), side, rng, 8)
    draw = ImageDraw.Draw(picture)
    height, width, gap = side / 8, side / 4, side / 50
    base = jitter((172, 78, 56), rng, 8)
    shift_x, shift_y = rng.uniform(0, width), rng.uniform(0, height)
    for row in range(-1, 9):
        offset = shift_x + (row % 2) * width / 2
        for column in range(-2, 5):
            x, y = column * width + offset, row * height + shift_y
            box = (x, y, x + width - gap, y + height - gap)
            draw.rectangle(box, fill=jitter(base, rng, 13))
    return picture


def _night(side: int, rng: random.Random) -> Image.Image:
    picture = _gradient(jitter((14, 18, 66), rng, 6), jitter((36, 44, 112), rng, 8), side)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(22, 32)):
        x, y = rng.uniform(0, side), rng.uniform(0, side)
        radius = side * rng.uniform(0.006, 0.012)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(250, 246, 214))
    return picture


def _sunset(side: int, rng: random.Random) -> Image.Image:
    return _gradient(jitter((222, 78, 130), rng, 12), jitter((255, 186, 78), rng, 10), side)


_PAINTERS = {
    "white": _white, "gray": _gray, "sky": _sky, "grass": _grass, "sand": _sand,
    "brick": _brick, "night": _night, "sunset": _sunset, "purple": _purple,
}  # fmt: skip


def backdrop(name: str, side: int, rng: random.Random) -> Image.Image:
    """An RGB picture [side, side] of the named background."""
    return _PAINTERS[name](side, rng)
