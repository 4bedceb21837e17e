"""Is the step that a run calls best really the best? ``python -m benchmarks.best_step``.

Five subjects that are in no base and in no example (two creatures, a vehicle, two letters), each
learned by pocket with three seeds, far too long. At every save the run itself judges few images
(``save.best_by: images``). Afterwards every save is judged anew and densely: all prompts that
pocket knows, more images of the class, other seeds. Printed for each run: the step that it chose,
where ``run.stop_when: 3`` would have ended it, and the dense score of the chosen step beside the
best.

What is done is kept in ``--out``, so the command may be stopped and given again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from dreambooth_core.commands.main import main as dreambooth
from dreambooth_core.config.loading import load
from dreambooth_core.jobs import RunFolder
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.best import Look
from tools.pocket.backdrops import backdrop
from tools.pocket.outlines import outline
from tools.pocket.painting import INK, SUPERSAMPLING, Pose
from tools.pocket.world import RGB, Scene, Thing

SEEDS = (1, 2, 3)
STEPS, EVERY, PATIENCE = 300, 30, 3
BACKGROUNDS = ("grass", "sky", "brick", "white", "sand", "gray", "night", "sunset")
DENSE_SEED = 500_000
"""Far from the seeds that a run judges itself with."""

STEP = re.compile(r", step (\d+)$")
"""In an evaluation's label; the last result has none."""

Point = tuple[float, float]
Piece = tuple[RGB, list[Point]]

WHITE: RGB = (252, 252, 252)
TEAL, MAGENTA, AMBER, LEAF = (18, 158, 150), (226, 30, 142), (240, 160, 30), (70, 170, 60)
NAVY, SILVER, CORAL = (30, 50, 130), (200, 205, 215), (250, 110, 90)


def disc(x: float, y: float, radius: float) -> list[Point]:
    """A circle as a polygon."""
    return [(x + radius * a, y + radius * b) for a, b in outline("circle")]


def box(left: float, top: float, right: float, bottom: float) -> list[Point]:
    """A rectangle as a polygon."""
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def eye(x: float, y: float, radius: float) -> list[Piece]:
    """White with a pupil."""
    return [(WHITE, disc(x, y, radius)), (INK, disc(x, y, radius * 0.5))]


@dataclass(frozen=True)
class Subject:
    """One individual: polygons in a unit circle, painted in order, and the class that is nearest to
    it among what pocket knows."""

    name: str
    of_class: str
    pieces: tuple[Piece, ...]

    def paint(self, scene: Scene, size: int = 128) -> Image.Image:
        """The subject in a place, as an RGB image [size, size]."""
        side = size * SUPERSAMPLING
        canvas = backdrop(scene.background, side, random.Random(scene.seed))
        pose = Pose(scene, side)
        draw = ImageDraw.Draw(canvas)
        for colour, polygon in self.pieces:
            points = pose.points(polygon)
            draw.polygon(points, fill=colour)
            draw.line([*points, points[0], points[1]], fill=INK, width=5, joint="curve")
        return canvas.reduce(SUPERSAMPLING)

    def images(self, folder: Path) -> None:
        """Eight images of it, in eight places and poses."""
        folder.mkdir(parents=True, exist_ok=True)
        rng = random.Random(self.name)
        stands_for = Thing(self.of_class, TEAL, None)
        for number, background in enumerate(BACKGROUNDS):
            at = [rng.uniform(0.45, 0.55) for _ in "xy"]
            scale, angle = rng.uniform(0.62, 0.76), rng.uniform(-14, 14)
            scene = Scene(stands_for, background, *at, scale, angle, number)
            self.paint(scene).save(folder / f"{number}-{background}.png")


SUBJECTS = (
    Subject(
        "cat",
        "circle",
        (
            (AMBER, [(-0.85, -0.95), (-0.25, -0.6), (-0.8, -0.1)]),
            (AMBER, [(0.85, -0.95), (0.25, -0.6), (0.8, -0.1)]),
            (AMBER, disc(0, 0.1, 0.85)),
            *eye(-0.34, 0.0, 0.22),
            *eye(0.34, 0.0, 0.22),
            (MAGENTA, [(-0.16, 0.3), (0.16, 0.3), (0.0, 0.5)]),
        ),
    ),
    Subject(
        "fish",
        "diamond",
        (
            (CORAL, [(0.35, 0.0), (1.0, -0.55), (1.0, 0.55)]),
            (TEAL, [(-0.95, 0.0), (-0.2, -0.6), (0.55, 0.0), (-0.2, 0.6)]),
            (CORAL, [(-0.25, -0.15), (0.15, 0.0), (-0.25, 0.15)]),
            *eye(-0.55, -0.05, 0.17),
        ),
    ),
    Subject(
        "car",
        "square",
        (
            (NAVY, [(-0.55, -0.1), (-0.35, -0.6), (0.35, -0.6), (0.6, -0.1)]),
            (SILVER, box(-0.3, -0.48, 0.28, -0.14)),
            (NAVY, box(-0.98, -0.1, 0.98, 0.4)),
            (AMBER, box(0.72, -0.02, 0.94, 0.18)),
            (INK, disc(-0.52, 0.42, 0.28)),
            (SILVER, disc(-0.52, 0.42, 0.13)),
            (INK, disc(0.52, 0.42, 0.28)),
            (SILVER, disc(0.52, 0.42, 0.13)),
        ),
    ),
    Subject(
        "letter T",
        "cross",
        (
            (LEAF, box(-0.27, -0.9, 0.27, 0.95)),
            (MAGENTA, box(-0.9, -0.95, 0.9, -0.42)),
        ),
    ),
    Subject(
        "letter A",
        "triangle",
        (
            (CORAL, [(0.0, -1.0), (0.95, 0.95), (-0.95, 0.95)]),
            (WHITE, [(0.0, -0.45), (0.22, 0.15), (-0.22, 0.15)]),
            (NAVY, [(-0.32, 0.5), (0.32, 0.5), (0.5, 0.95), (-0.5, 0.95)]),
        ),
    ),
)


def config_for(subject: Subject, seed: int, folder: Path) -> TrainConfig:
    """Far too long, at a learning rate that does not fall."""
    images = folder / "images" / subject.name
    if not images.is_dir():
        subject.images(images)
    of_class = f"a photo of a {subject.of_class}"
    values = {
        "base": {"model": "pocket"},
        "concepts": [
            {
                "images": str(images),
                "name": "subject",
                "instance_prompt": f"a photo of a sks {subject.of_class}",
                "class_prompt": of_class,
            }
        ],
        "data": {"resolution": 64, "held_out": 2},
        "method": {"kind": "lora", "rank": 8, "alpha": 8.0, "target_modules": "all"},
        "objective": {"weighting": "v_equivalent"},
        "optim": {"learning_rate": 5.0e-3, "ema": {"enabled": True, "decay": 0.97}},
        "prior": {"enabled": True, "source": "prediction"},
        "run": {
            "name": f"{subject.name.replace(' ', '-')}-{seed}",
            "output": str(folder / "runs"),
            "steps": STEPS,
            "batch_size": 1,
            "seed": seed,
        },
        "save": {
            "every_steps": EVERY,
            "every_minutes": None,
            "best": True,
            "best_by": "images",
            "best_images": 24,
        },
        "validation": {"num_inference_steps": 8, "guidance_scale": 3.0},
    }
    file = folder / "configs" / f"{values['run']['name']}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(values), encoding="utf-8")
    return load(TrainConfig, files=[file])


@dataclass
class Row:
    """One run, and what its saves are worth."""

    subject: str
    seed: int
    own: dict[int, float]
    """Step: the score that the run gave itself."""
    dense: dict[int, float]
    """Step: the score found afterwards; 0 is the base."""
    train_seconds: float
    judge_seconds: float

    @property
    def ends_at(self) -> int:
        """The step at which ``run.stop_when`` would have ended it."""
        best, waited = -1.0, 0
        for step, score in sorted(self.own.items()):
            best, waited = (score, 0) if score > best else (best, waited + 1)
            if waited == PATIENCE:
                return step
        return STEPS

    @property
    def chosen(self) -> int:
        """The best step in the run's own eyes, of those before it would have ended."""
        seen = {step: score for step, score in self.own.items() if step <= self.ends_at}
        return min(seen, key=lambda step: (-seen[step], step))

    @property
    def best(self) -> int:
        """By the dense scores."""
        return max((s for s in self.dense if s), key=lambda step: self.dense[step])

    @property
    def share(self) -> float:
        """What the chosen step reaches of the best step's dense score."""
        return self.dense[self.chosen] / self.dense[self.best]


def one(subject: Subject, seed: int, folder: Path) -> Row:
    """Trains, lets the run judge itself, and judges it again."""
    config = config_for(subject, seed, folder)
    run = RunFolder(Path(config.run.output) / config.run.name)
    report = run.path / "evaluation.json"
    file = folder / "configs" / f"{config.run.name}.json"
    started = time.process_time()
    if not run.receipt.exists() and dreambooth(["train", str(file)]):
        raise SystemExit(f"{run.path}: the training failed")
    trained = time.process_time()
    arguments = ["--saves", "--images", "4", "--seed", str(DENSE_SEED), "--batch-size", "36"]
    arguments += ["--steps", "8", "--guidance", "3"]
    if not report.exists() and dreambooth(["evaluate", str(run.path), *arguments]):
        raise SystemExit(f"{run.path}: the evaluation failed")
    judged = time.process_time()
    measured = [e for e in run.events if e["kind"] == "measured"]
    return Row(
        subject.name,
        seed,
        {e["step"]: e["score"] for e in measured},
        dense_scores(json.loads(report.read_text(encoding="utf-8"))),
        round(trained - started, 1),
        round(judged - trained, 1),
    )


def dense_scores(report: dict[str, Any]) -> dict[int, float]:
    """Step: score, by the rule that a run uses itself; 0 is the base."""
    looks = {}
    for model in report["models"]:
        found = {name: each["value"] for name, each in model["measures"].items()}
        step = int(found_step[1]) if (found_step := STEP.search(model["label"])) else STEPS
        step = 0 if model["label"] == "base" else step
        looks[step] = Look(found["subject"], found["clip_t"], found["preservation"])
    return {step: round(look.score(looks[0]), 4) for step, look in looks.items()}


def table(rows: list[Row]) -> str:
    """For docs/benchmarks.md."""
    lines = [
        "| subject | seed | chosen | best | ends at | score of the chosen | of the best | share |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r.subject} | {r.seed} | {r.chosen} | {r.best} | {r.ends_at} of {STEPS} "
        f"| {r.dense[r.chosen]:.3f} | {r.dense[r.best]:.3f} | {r.share:.1%} |"
        for r in rows
    ]
    within = sum(r.share >= 0.95 for r in rows)
    early = sum(r.ends_at < STEPS for r in rows)
    return "\n".join(
        [*lines, "", f"{within} of {len(rows)} within 5% of the best, {early} end early."]
    )


def main() -> int:
    """All runs, or those that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.best_step")
    parser.add_argument("--out", type=Path, default=Path("best-step"), help="folder for all of it")
    parser.add_argument("--only", metavar="NAME", help="only this subject")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="only this seed")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in SEEDS:
        for subject in SUBJECTS:
            if args.only not in (None, subject.name) or args.seed not in (None, seed):
                continue
            kept = args.out / f"{subject.name}-{seed}.json"
            if not kept.exists():
                kept.write_text(json.dumps(asdict(one(subject, seed, args.out))), encoding="utf-8")
            values = json.loads(kept.read_text(encoding="utf-8"))
            for name in ("own", "dense"):
                values[name] = {int(step): score for step, score in values[name].items()}
            rows.append(Row(**values))
            print(table(rows), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
