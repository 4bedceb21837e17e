"""What one round of marked images teaches: the share of good images before and after it.

    python -m benchmarks.marks [--folder FOLDER]

The embedded base ``pocket`` learns its star for a while, too short to draw it well. The adapter
draws images, and a machine marks them: those whose likeness to the star's images, by pocket's own
vision tower, is above the median are good. From there the same number of steps goes on in four
ways: as before, with the good images joined, with pairs alone (Diffusion-DPO), and with both. The
share of images above that same threshold is counted on other seeds, on the marked prompts and on
prompts that nobody marked. One thread.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dreambooth_core.bases.locate import locate
from dreambooth_core.commands.demonstration import FOLDER
from dreambooth_core.config.loading import dump, load
from dreambooth_core.data.marks import NAME, Mark, write_marks
from dreambooth_core.evaluation.scores import agreement, diversity, load_scorer, similarity
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.jobs import RunFolder, read_made
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.run import run

STAR = "a photo of a sks star with one eye and a smile"
CLASS = "a photo of a star"
MARKED = ("night", "purple", "grass", "brick")
"""Backgrounds of the prompts whose images are marked."""
UNMARKED = ("sunset", "sand")
KNOWN = ("white", "gray", "sky", "grass", "sand", "brick", "night", "sunset", "purple")
"""Among which an image's background is told."""
BATCH = 8

WAYS: dict[str, dict[str, Any]] = {
    "as before": {},
    "good images join": {"marks.file": NAME},
    "pairs alone": {"marks.file": NAME, "objective.loss": "dpo", "marks.images": "none"},
    "both": {"marks.file": NAME, "objective.loss": "dpo"},
}


@dataclass(frozen=True)
class Row:
    """What images of one adapter are."""

    share: float
    unmarked: float
    likeness: float
    background: float
    of_class: float
    variety: float
    seconds: float
    """CPU seconds of its training."""


class Bench:
    """The base, and what its images are compared with."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.args = folder, args
        self.parts = load_base(load(TrainConfig, overrides=["base.model=pocket"]).base)
        self.scorer = load_scorer(locate("pocket"))
        star = sorted((FOLDER / "star").glob("*.png"))
        self.real = self.scorer.identities([Image.open(path) for path in star])
        self.settings = SamplingSettings(
            steps=args.sampling_steps, guidance=3.0, width=128, height=128, batch_size=BATCH
        )

    def train(self, name: str, steps: int, **changes: Any) -> tuple[Path, float]:
        """A run of the demo's configuration; the adapter's file and its CPU seconds."""
        values = {
            "prior.source": "prediction",
            "run.output": self.folder,
            "run.name": name.replace(" ", "-"),
            "run.steps": steps,
            "optim.lr_warmup_steps": 5,
            "validation.prompts": "[]",
            "log.tensorboard": "false",
            "save.every_minutes": "null",
            "concepts[0].images": FOLDER / "star",
            **changes,
        }
        given = [f"{key}={value}" for key, value in values.items()]
        config = load(TrainConfig, files=[FOLDER / "pocket.yaml"], overrides=given)
        folder = RunFolder.create(config.run.output, config.run.name)
        folder.config.write_text(dump(config), encoding="utf-8")
        began = time.process_time()
        run(folder)
        return read_made(folder).file, time.process_time() - began

    @contextmanager
    def adapted(self, adapter: Path) -> Iterator[None]:
        """Inside, the base with an adapter."""
        stack = AdapterStack(self.parts.models)
        stack.load("it", read_adapter(adapter), 1.0)
        try:
            yield
        finally:
            stack.clear()

    def draw(self, prompts: list[str], seeds: list[int]) -> list[Image.Image]:
        """One image for each prompt and seed."""
        return generate(self.parts, prompts, seeds, self.settings)

    def likeness(self, images: list[Image.Image]) -> torch.Tensor:
        """``[images]``: of each to the star's images."""
        return (self.scorer.identities(images) @ self.real.T).mean(dim=1)

    def mark(self, adapter: Path) -> float:
        """Draws and marks images; returns the likeness from which on they are good."""
        count = self.args.images
        prompts = [told(name) for name in MARKED for _ in range(count)]
        seeds = [100 + n for _ in MARKED for n in range(count)]
        with self.adapted(adapter):
            images = self.draw(prompts, seeds)
        likeness = self.likeness(images)
        threshold = float(likeness.median())
        marks = []
        for n, image in enumerate(images):
            image.save(self.folder / f"{n:03d}.png")
            mark = "good" if likeness[n] > threshold else "bad"
            marks.append(Mark(f"{n:03d}.png", prompts[n], seeds[n], mark))
        write_marks(self.folder / NAME, self.parts.fingerprint, marks)
        return threshold

    def judge(self, adapter: Path, threshold: float, seconds: float) -> Row:
        """What images of other seeds are."""
        count = self.args.images
        names = [name for name in (*MARKED, *UNMARKED) for _ in range(count)]
        seeds = [500 + n for _ in (*MARKED, *UNMARKED) for n in range(count)]
        with self.adapted(adapter):
            images = self.draw([told(name) for name in names], seeds)
            of_class = self.draw([CLASS] * BATCH, [21 + n for n in range(BATCH)])
        likeness = self.likeness(images)
        good = (likeness > threshold).float()
        marked = len(MARKED) * count
        captions = self.scorer.captions([f"a star on a {name} background" for name in KNOWN])
        right = [KNOWN.index(name) for name in names]
        ordinary = self.scorer.identities(of_class)
        return Row(
            share=float(good[:marked].mean()),
            unmarked=float(good[marked:].mean()),
            likeness=float(likeness.mean()),
            background=agreement(self.scorer.images(images), captions, right),
            of_class=similarity(ordinary, self.real),
            variety=diversity(ordinary),
            seconds=seconds,
        )


def told(background: str) -> str:
    """The star's prompt on a background."""
    return f"{STAR} on a {background} background"


def main(argv: list[str]) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What one round of marked images teaches.")
    parser.add_argument("--folder", type=Path, help="where runs and images are kept")
    parser.add_argument("--first-steps", type=int, default=60)
    parser.add_argument("--steps", type=int, default=40, help="of each way to go on")
    parser.add_argument("--images", type=int, default=8, help="for each prompt")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate of going on")
    parser.add_argument("--beta", type=float, default=1000.0)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(folder, args)
        first, seconds = bench.train("first", args.first_steps)
        threshold = bench.mark(first)
        print(f"good: a likeness above {threshold:.3f}\n")
        head = "good | good, prompts unmarked | likeness | background | class | variety | CPU s"
        print(f"| | {head} |\n| --- |{' --- |' * 7}")
        show("when it was marked", bench.judge(first, threshold, seconds))
        for name in args.ways:
            values = dict(WAYS[name])
            if "marks.file" in values:
                values["marks.file"] = folder / NAME
            going_on = {
                "method.init_from": first,
                "optim.learning_rate": args.rate,
                "objective.dpo_beta": args.beta,
            }
            adapter, seconds = bench.train(name, args.steps, **going_on, **values)
            show(name, bench.judge(adapter, threshold, seconds))
        print(f"\n{time.process_time():.0f} CPU seconds in all")
    return 0


def show(name: str, row: Row) -> None:
    """One line of the table."""
    shares = f"{row.share:.0%} | {row.unmarked:.0%}"
    rest = f"{row.likeness:.3f} | {row.background:.2f} | {row.of_class:.3f} | {row.variety:.2f}"
    print(f"| {name} | {shares} | {rest} | {row.seconds:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
