"""Evaluate: how well a run has learned its subject, in numbers and images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.commands.evaluate import KINDS
from dreambooth_core.commands.evaluate import Options as Asked
from dreambooth_core.errors import UserError

from . import engine, host
from .description import PREFIX, TOLD, Input, Node, Output, Result
from .history import RUN, look_at_run, open_run

LIKENESS = ("subject", "style")
"""The measure that tells the better of two steps where no images were held out."""


def evaluate(
    run: str,
    kind: str,
    saves: bool,
    prompts: str,
    images: int,
    sampling_steps: int,
    download: bool,
    node_id: str | None = None,
) -> Result:
    """Runs Evaluate."""
    folder = open_run(run)
    asked: dict[str, Any] = {
        "runs": [str(folder.path)],
        "kind": kind,
        "saves": saves,
        "images": images,
        "steps": sampling_steps or None,
        "download": download,
    }
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if wrong := [line for line in lines if "{}" not in line]:
        raise UserError(
            f"the prompt {wrong[0]!r} does not say where the subject stands",
            where="Evaluate (DreamBooth), Prompts",
            do="Write {} there: {} on a beach.",
        )
    host.free_models()
    with tempfile.TemporaryDirectory() as place:
        if lines:
            asked["prompts"] = Path(place) / "prompts.json"
            asked["prompts"].write_text(json.dumps(lines), encoding="utf-8")
        report = engine.task("evaluate", asked, host.Progress(node_id), gpu=True)
    best = best_step(report)
    told = [*scores(report), f"best step: {best}", f"saved as {report['files']['html']}"]
    sheet = host.load_images([Path(report["files"]["png"])])
    return Result((sheet, best, report["files"]["html"]), told)


def scores(report: Mapping[str, Any]) -> list[str]:
    """The measures, a line for each."""
    lines = list(report["notes"])
    for name, word in report["names"].items():
        found = {model["label"]: _score(model, name) for model in report["models"]}
        said = [f"{label} {value:.3f}" for label, value in found.items() if value is not None]
        if said:
            lines.append(f"{word}: {', '.join(said)}")
    return lines


def _score(model: Mapping[str, Any], name: str) -> float | None:
    if name == "held_out_loss":
        return model["held_out_loss"]
    found = model["measures"].get(name)
    return None if found is None else float(found["value"])


def best_step(report: Mapping[str, Any]) -> int:
    """The step that images that were held out found best, else the one most like the subject."""
    trained = [model for model in report["models"] if model["step"] is not None]
    for model in trained:
        if model["best"]:
            return int(model["step"])

    def likeness(model: Mapping[str, Any]) -> float:
        found = [_score(model, name) for name in LIKENESS]
        return max((value for value in found if value is not None), default=float("-inf"))

    best = max(trained, key=lambda model: (likeness(model), model["step"]))
    return int(best["step"])


_DEFAULT = Asked(runs=[])

EVALUATE = Node(
    f"{PREFIX}Evaluate",
    "Evaluate (DreamBooth)",
    "Draws what a training has learned on 25 other prompts, beside its base, and measures likeness "
    "to the real images, faithfulness to the prompts and how far the class was kept.",
    (
        RUN,
        Input(
            "kind",
            "COMBO",
            "Kind",
            "Which 25 prompts: of things, of people and animals, or other contents for a style.",
            _DEFAULT.kind,
            choices=KINDS,
        ),
        Input(
            "saves",
            "BOOLEAN",
            "Every saved step",
            "Judge every saved step, and not the end alone: that tells which is best.",
            _DEFAULT.saves,
        ),
        Input(
            "prompts",
            "STRING",
            "Prompts",
            "Other prompts than those, one on each line, with {} for the subject.",
            "",
            multiline=True,
        ),
        Input("images", "INT", "Images", "Images for each prompt.", _DEFAULT.images, 1, 64),
        Input(
            "sampling_steps",
            "INT",
            "Sampling steps",
            "Denoising steps. 0: as the base recommends.",
            0,
            0,
            1000,
        ),
        Input(
            "download",
            "BOOLEAN",
            "Download",
            "Let encoders that are not on this machine be fetched (CLIP 605 MB, DINO 88 MB).",
            _DEFAULT.download,
        ),
    ),
    (
        Output("IMAGE", "GRID", "One labelled sheet: prompts down, base and steps across."),
        Output("INT", "BEST STEP", "For the step of Runs: the best one of those judged."),
        Output("STRING", "REPORT", "The file of the whole report, a page with every image."),
        TOLD,
    ),
    evaluate,
    group="Runs",
    is_output=True,
    fingerprint=look_at_run,
)

NODES = (EVALUATE,)
