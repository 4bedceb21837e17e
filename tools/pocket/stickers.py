"""Draws a style that pocket has never seen: stickers, for trying two adapters together.

    python -m tools.pocket.stickers runs/stickers

Six different things on six backgrounds, all cut out with a broad white edge and stuck on; beside
each picture its caption.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from .painting import paint
from .world import COLOURS, Scene, Thing

THINGS = (
    ("red", "plain", "circle", "grass", -8.0),
    ("purple", "plain", "heart", "sky", 6.0),
    ("green", "striped", "square", "brick", -4.0),
    ("yellow", "plain", "moon", "night", 10.0),
    ("blue", "plain", "star", "sand", 0.0),
    ("orange", "dotted", "diamond", "purple", 5.0),
)
"""Colour, pattern, shape, background and angle in degrees."""


def write(folder: Path) -> list[Path]:
    """Writes pictures and captions; returns the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, (colour, pattern, shape, background, angle) in enumerate(THINGS, start=1):
        thing = Thing(shape, COLOURS[colour], colour, pattern)
        picture = paint(Scene(thing, background, 0.5, 0.5, 0.6, angle, 20 + number, sticker=True))
        path = folder / f"sticker-{number}-{shape}.png"
        temporary = path.with_suffix(".tmp")
        picture.save(temporary, format="PNG", optimize=True)
        os.replace(temporary, path)
        words = colour if pattern == "plain" else f"{colour} {pattern}"
        caption = f"a sticker of a {words} {shape} on a {background} background"
        path.with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.stickers", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pictures go")
    for path in write(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
