"""Makes the picture of docs/merging.md by the commands that stand there.

    python -m tools.two_adapters --out build/two-adapters

Needs the demo's adapter (``python install.py demo``), trains a style beside it and shows both
alone, together and merged.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from PIL import Image

from dreambooth_core.commands.main import main as dreambooth
from dreambooth_core.evaluation.grid import Row, sheet
from tools.pocket import stickers

ROOT = Path(__file__).resolve().parent.parent
STYLE = ROOT / "tools" / "stickers.yaml"
PICTURE = ROOT / "docs" / "pictures" / "two-adapters.png"
PROMPTS = {
    '"a photo of a sks star\nwith one eye and a smile\non a sand background"': (
        "a photo of a sks star with one eye and a smile on a sand background"
    ),
    '"a photo of a red heart\non a grass background"': (
        "a photo of a red heart on a grass background"
    ),
}
SEEDS = (3, 4)


def run(command: str, *rest: str) -> None:
    """One command of the command line, which must succeed."""
    print("dreambooth", command, *map(shlex.quote, rest), flush=True)
    if code := dreambooth([command, *rest]):
        sys.exit(code)


def columns(out: Path, star: Path) -> dict[str, list[str]]:
    """What each column of the picture draws with, once the style is trained and merged."""
    stickers.write(out / "stickers")
    pictures = f"concepts.0.images={out / 'stickers'}"
    run("train", str(STYLE), pictures, f"run.output={out}", "run.name=sticker")
    style = out / "sticker" / "sticker.safetensors"
    merged = out / "sticker-star.safetensors"
    run("merge", f"{star}:1.0", f"{style}:1.05", "--out", str(merged))
    return {
        "pocket": [],
        "star": [f"{star}"],
        "sticker": [f"{style}"],
        "star, sticker 0.7": [f"{star}", f"{style}:0.7"],
        "merged 1 : 1.05": [f"{merged}"],
    }


def draw(folder: Path, prompt: str, seed: int, adapters: list[str]) -> Image.Image:
    """One picture by ``dreambooth sample``."""
    named = [word for adapter in adapters for word in ("--adapter", adapter)]
    size = ["--width", "128", "--height", "128", "--seed", str(seed), "--out", str(folder)]
    before = set(folder.glob("*.png"))
    run("sample", prompt, *named, *size)
    (made,) = set(folder.glob("*.png")) - before
    with Image.open(made) as image:
        return image.convert("RGB")


def main() -> int:
    """Trains, merges, draws."""
    parser = argparse.ArgumentParser(prog="python -m tools.two_adapters", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/two-adapters"))
    parser.add_argument("--star", type=Path, default=Path("runs/demo/demo.safetensors"))
    options = parser.parse_args()
    adapters = columns(options.out, options.star)
    rows = [
        Row(
            label if seed == SEEDS[0] else "",
            [draw(options.out / "samples", prompt, seed, used) for used in adapters.values()],
        )
        for label, prompt in PROMPTS.items()
        for seed in SEEDS
    ]
    sheet(rows, columns=list(adapters)).save(PICTURE, optimize=True)
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
