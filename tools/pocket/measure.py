"""Measures pocket: how often a generated picture shows what its prompt names.

``python -m tools.pocket.measure`` generates the prompts of the template with the shipped folder
through diffusers (DDIM, trailing, 25 steps, guidance 3) and lets the classifier, which never saw
the UNet, look at them. Writes ``quality.json`` beside this file and a sheet of samples.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from . import classifier, vocabulary
from .autoencoder import to_tensor
from .captions import template
from .export import RECOMMENDED
from .training import save_json
from .world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "dreambooth_core" / "assets"
HERE = Path(__file__).parent
STEPS, GUIDANCE = RECOMMENDED["steps"], RECOMMENDED["guidance"]
BATCH = 18


def load(pocket: Path, tokens: Path) -> StableDiffusionPipeline:
    """The shipped folder in fp32 on the CPU."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        pocket,
        tokenizer=vocabulary.tokenizer(tokens),
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline, prompts: list[str], side: int, seed: int
) -> list[Image.Image]:
    """One picture [side, side] a prompt; picture i has the seed ``seed + i``."""
    pictures: list[Image.Image] = []
    for first in range(0, len(prompts), BATCH):
        part = prompts[first : first + BATCH]
        seeds = [torch.Generator().manual_seed(seed + first + k) for k in range(len(part))]
        pictures += pipeline(
            part,
            height=side,
            width=side,
            num_inference_steps=int(STEPS),
            guidance_scale=GUIDANCE,
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


def sheet(pipeline: StableDiffusionPipeline, path: Path) -> None:
    """A sheet of 6 x 4 samples under their prompts, seeds 0 to 23, nothing picked."""
    rng = random.Random("sheet")
    shapes = list(SHAPES) * 3
    texts = []
    for shape in shapes:
        names = (rng.choice(list(COLOURS)), rng.choice(PATTERNS))
        texts.append(template(*names, shape, rng.choice(BACKGROUNDS)))
    pictures = generate(pipeline, texts, 128, 0)
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
    canvas.save(temporary, format="PNG", optimize=True)
    os.replace(temporary, path)


def main() -> None:
    """Measures the shipped folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.pocket.measure", description=__doc__)
    parser.add_argument("--pocket", type=Path, default=ASSETS / "pocket")
    parser.add_argument("--tokens", type=Path, default=ASSETS / "pocket" / "tokenizer")
    parser.add_argument("--count", type=int, default=216)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--result", type=Path, default=HERE / "quality.json")
    parser.add_argument("--sheet", type=Path, default=ROOT / "docs/pictures/pocket-samples.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipeline, model = load(options.pocket, options.tokens), classifier.load()
    wanted = prompts(options.count, options.seed)
    texts = [template(w["colour"], w["pattern"], w["shape"], w["background"]) for w in wanted]
    result: dict[str, object] = {
        "prompts": options.count,
        "seed": options.seed,
        "steps": STEPS,
        "guidance": GUIDANCE,
    }
    for side in (128, 64):
        pictures = generate(pipeline, texts, side, options.seed)
        result[f"found at {side}"], misses = judge(model, pictures, wanted)
        print(side, result[f"found at {side}"])
        for miss in misses:
            print("  ", miss)
    known = HERE / "classifier.json"
    if known.exists():
        result["classifier accuracy"] = json.loads(known.read_text(encoding="utf-8"))
    save_json(result, options.result)
    sheet(pipeline, options.sheet)


if __name__ == "__main__":
    main()
