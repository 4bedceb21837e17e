"""Measures pocket: how often a generated picture shows what its prompt names.

``python -m tools.pocket.measure`` generates the prompts of the template with the shipped folder
through diffusers, with the steps and the guidance that lie beside it (pocket: DDIM, trailing, 25
steps, guidance 3), and lets the classifier, which never saw the denoiser, look at them. Writes
``quality.json`` beside this file and a sheet of samples. ``--base pocket-flow`` measures that, into
``quality-flow.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageDraw

from dreambooth_core.bases.embedded import EMBEDDED, whole_folder

from . import classifier
from .autoencoder import to_tensor
from .captions import template
from .training import save_json
from .world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
NAMES = {"pocket": ("quality", "pocket-samples"), "pocket-flow": ("quality-flow", "flow-samples")}
"""Of the files with the numbers and with the samples."""
BATCH = 18


class Model:
    """A folder in fp32 on the CPU, sampled as its makers recommend."""

    def __init__(self, folder: Path) -> None:
        self.pipeline = DiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True
        )
        self.pipeline.set_progress_bar_config(disable=True)
        said = json.loads((folder / "recommended.json").read_text(encoding="utf-8"))
        self.steps, self.guidance = int(said["steps"]), float(said["guidance"])

    def generate(self, prompts: list[str], side: int, seed: int) -> list[Image.Image]:
        """One picture [side, side] a prompt; picture i has the seed ``seed + i``."""
        # Z-Image's pipeline counts guidance from 0.
        less = 1.0 if type(self.pipeline).__name__ == "ZImagePipeline" else 0.0
        pictures: list[Image.Image] = []
        for first in range(0, len(prompts), BATCH):
            part = prompts[first : first + BATCH]
            seeds = [torch.Generator().manual_seed(seed + first + k) for k in range(len(part))]
            pictures += self.pipeline(
                part,
                height=side,
                width=side,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance - less,
                generator=seeds,
            ).images
        return pictures


def prompts(count: int, seed: int) -> list[dict[str, str]]:
    """Random, even over each head's names: dictionaries of the four named things."""
    rng = random.Random(seed)
    columns = {}
    for head, names in classifier.HEADS.items():
        column = [names[k % len(names)] for k in range(count)]
        rng.shuffle(column)
        columns[head] = column
    return [{head: columns[head][k] for head in columns} for k in range(count)]


@torch.no_grad()
def judge(
    model: classifier.Classifier, pictures: list[Image.Image], wanted: list[dict[str, str]]
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Share of pictures in which each named thing is found, and what was found instead."""
    logits = model(classifier.shrink_tensor(to_tensor(pictures)))
    shares, misses = {}, []
    for head, names in classifier.HEADS.items():
        found = [names[k] for k in logits[head].argmax(1).tolist()]
        hits = [a == w[head] for a, w in zip(found, wanted, strict=True)]
        shares[head] = round(sum(hits) / len(hits), 4)
        misses += [
            {"picture": str(k), head: wanted[k][head], "found": found[k]}
            for k, hit in enumerate(hits)
            if not hit
        ]
    return shares, misses


def sheet(model: Model, path: Path) -> None:
    """A sheet of 6 x 4 samples under their prompts, seeds 0 to 23, nothing picked."""
    rng = random.Random("sheet")
    shapes = list(SHAPES) * 3
    texts = []
    for shape in shapes:
        names = (rng.choice(list(COLOURS)), rng.choice(PATTERNS))
        texts.append(template(*names, shape, rng.choice(BACKGROUNDS)))
    pictures = model.generate(texts, 128, 0)
    canvas = Image.new("RGB", (6 * 144 + 16, 4 * 166 + 8), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)
    for k, (text, picture) in enumerate(zip(texts, pictures, strict=True)):
        x, y = 16 + k % 6 * 144, 12 + k // 6 * 166
        canvas.paste(picture, (x, y))
        head, _, tail = text.removeprefix("a photo of a ").partition(" on a ")
        draw.text((x, y + 129), f"{head}\non {tail.removesuffix(' background')}", fill=(40, 40, 40),
                  font_size=10, spacing=1)  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    few = canvas.quantize(256, dither=Image.Dither.NONE)  # a third of the bytes
    few.save(temporary, format="PNG", optimize=True)
    os.replace(temporary, path)


def main() -> None:
    """Measures the shipped folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.measure", description=__doc__)
    parser.add_argument("--base", choices=EMBEDDED, default=EMBEDDED[0])
    parser.add_argument("--count", type=int, default=216)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numbers, samples = NAMES[options.base]
    model, eyes = Model(whole_folder(options.base)), classifier.load()
    wanted = prompts(options.count, options.seed)
    texts = [template(w["colour"], w["pattern"], w["shape"], w["background"]) for w in wanted]
    result: dict[str, object] = {
        "prompts": options.count,
        "seed": options.seed,
        "steps": model.steps,
        "guidance": model.guidance,
    }
    for side in (128, 64):
        pictures = model.generate(texts, side, options.seed)
        result[f"found at {side}"], misses = judge(eyes, pictures, wanted)
        print(side, result[f"found at {side}"])
        for miss in misses:
            print("  ", miss)
    known = HERE / "classifier.json"
    if known.exists():
        result["classifier accuracy"] = json.loads(known.read_text(encoding="utf-8"))
    save_json(result, HERE / f"{numbers}.json")
    sheet(model, ROOT / "docs" / "pictures" / f"{samples}.png")


if __name__ == "__main__":
    main()
