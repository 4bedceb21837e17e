"""Runs and Compare Steps: what past trainings made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import UserError
from dreambooth_core.evaluation.grid import Row, sheet
from dreambooth_core.jobs import RunFolder, list_runs, status

from . import host
from .adapters import ADAPTER_OUTPUT, strength
from .description import PREFIX, TOLD, Input, Node, Output, Result
from .learned import Learned, best_of, results_of
from .watching import samples_of

if TYPE_CHECKING:
    from PIL import Image

NO_RUNS = "(no runs yet)"
LAST, BEST = -1, -2


def pick(run: str, step: int, node_id: str | None = None) -> Result:
    """Runs Runs."""
    folder = open_run(run)
    files = results_of(folder)
    chosen = _chosen(folder, files, step)
    curve = folder.path / "loss.png"
    state = status(folder)
    lines = [
        f"{run}: {state.state}, {state.step} of {state.steps} steps",
        f"saved steps: {', '.join(map(str, files)) or 'none'}",
        *([f"loss {state.loss:.4f}"] if state.loss is not None else []),
        *([f"best step: {best.step}"] if (best := best_of(folder)) else []),
        *chosen.lines,
    ]
    return Result(
        (
            chosen.adapter,
            host.load_images(samples_of(folder, chosen.step)),
            host.load_images([curve] if curve.is_file() else []),
        ),
        lines,
    )


def open_run(name: str) -> RunFolder:
    """A listed run. Raises ``UserError`` for anything that is not one."""
    path = host.runs_folder() / name
    if Path(name).name != name or not RunFolder(path).exists():
        raise UserError("there is no such run", where=name, do="Press R to see the runs.")
    return RunFolder(path)


def _chosen(folder: RunFolder, files: dict[int, Learned], step: int) -> Learned:
    if not files:
        raise UserError("this run has saved nothing yet", where=folder.name)
    if step == LAST:
        step = max(files)
    if step == BEST:
        best = best_of(folder)
        if best is None:
            raise UserError(
                "this run measured no step, or kept none that it measured",
                where=folder.name,
                do="Train with “Mark the best step” on, or judge its steps with Evaluate.",
            )
        return best
    if step not in files:
        there = ", ".join(map(str, files))
        raise UserError(f"step {step} was not saved", where=folder.name, do=f"Saved: {there}.")
    return files[step]


def look_at_run(run: str = "", **_: Any) -> str:
    """The fingerprint of a run's files."""
    try:
        files = results_of(open_run(run))
    except UserError:
        return ""
    return " ".join(
        f"{step}:{path.stat().st_mtime_ns}"
        for step, found in files.items()
        for path in (found.file, found.embedding)
        if path is not None
    )


def compare(
    model: Any,
    clip: Any,
    vae: Any,
    run: str,
    steps: str,
    prompts: str,
    strength_model: float,
    strength_clip: float,
    random_seed: int,
    sampling_steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    width: int,
    height: int,
    node_id: str | None = None,
) -> Result:
    """Runs Compare Steps."""
    files = wanted_steps(open_run(run), steps)
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        raise UserError("there is no prompt", do="Write one prompt on each line.")
    progress = host.Progress(node_id)
    total, done = (len(files) + 1) * len(lines), 0
    columns: list[list[Image.Image]] = []
    for learned in [None, *files.values()]:
        changed = (model, clip)
        if learned is not None:
            changed = learned.put_on(model, clip, strength_model, strength_clip)
        column = []
        for line in lines:
            column.append(
                host.draw(
                    *changed,
                    vae,
                    line,
                    host.Sampling(
                        random_seed, sampling_steps, cfg, sampler, scheduler, width, height
                    ),
                )
            )
            done += 1
            progress.show(done, total, column[-1])
        columns.append(column)
    rows = [Row(_wrapped(line), [c[i] for c in columns]) for i, line in enumerate(lines)]
    heads = ["base", *(f"step {step}" for step in files)]
    page = sheet(rows, columns=heads, tile=min(256, max(width, height)))
    every = [picture for column in columns for picture in column]
    return Result((host.from_pictures([page]), host.from_pictures(every)))


def wanted_steps(folder: RunFolder, text: str) -> dict[int, Learned]:
    """The saved results that a list of steps names; all for an empty one."""
    files = results_of(folder)
    if not files:
        raise UserError("this run has saved nothing yet", where=folder.name)
    named = [part for part in re.split(r"[\s,;]+", text) if part]
    known = {str(step): found for step, found in files.items()}
    if "best" in named and (best := best_of(folder)) is not None:
        known["best"] = best
    for part in named:
        if part not in known:
            there = ", ".join(map(str, files))
            raise UserError(f"step {part} was not saved", where=folder.name, do=f"Saved: {there}.")
    return {known[part].step: known[part] for part in named} or files


def _wrapped(text: str, width: int = 22) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines[:6])


def _runs() -> Sequence[str]:
    return [run.name for run in list_runs(host.runs_folder())] or [NO_RUNS]


RUN = Input(
    "run", "COMBO", "Run", "A training in output/dreambooth, the latest first.", choices=_runs
)
_PICTURES = Output("IMAGE", "IMAGES", "The images one by one.")

RUNS = Node(
    f"{PREFIX}Runs",
    "Runs (DreamBooth)",
    "Picks a past training and one of its saved steps.",
    (
        RUN,
        Input(
            "step",
            "INT",
            "Step",
            "A saved step; -1: the last; -2: the best that was measured.",
            LAST,
            BEST,
            10_000_000,
        ),
    ),
    (
        ADAPTER_OUTPUT,
        Output("IMAGE", "SAMPLES", "The sample images of that step."),
        Output("IMAGE", "LOSS", "The curve of the loss."),
        TOLD,
    ),
    pick,
    group="Runs",
    is_output=True,
    fingerprint=look_at_run,
)

COMPARE = Node(
    f"{PREFIX}CompareSteps",
    "Compare Steps (DreamBooth)",
    "Draws the same prompts with the base and with each saved step of a training, side by side, by "
    "the host's own sampler.",
    (
        Input("model", "MODEL", "Model", "The base that was trained on."),
        Input("clip", "CLIP", "CLIP", "Its text encoder."),
        Input("vae", "VAE", "VAE", "Its VAE."),
        RUN,
        Input("steps", "STRING", "Steps", "Saved steps with commas, or best. Empty: all.", ""),
        Input(
            "prompts",
            "STRING",
            "Prompts",
            "One on each line.",
            "a photo of sks dog",
            multiline=True,
        ),
        strength("strength_model", "Strength, model", "model"),
        strength("strength_clip", "Strength, CLIP", "text encoder"),
        Input("random_seed", "INT", "Seed", "The same for every image.", 0, 0, 2**53 - 1),
        Input("sampling_steps", "INT", "Sampling steps", "Denoising steps.", 20, 1, 1000),
        Input("cfg", "FLOAT", "CFG", "How strictly the prompt is followed.", 7.0, 0.0, 100.0, 0.1),
        Input("sampler", "COMBO", "Sampler", "The host's sampler.", choices=host.samplers),
        Input("scheduler", "COMBO", "Scheduler", "Its noise schedule.", choices=host.schedulers),
        Input("width", "INT", "Width", "In pixels.", 512, 16, 8192, 8),
        Input("height", "INT", "Height", "In pixels.", 512, 16, 8192, 8),
    ),
    (Output("IMAGE", "GRID", "One labelled sheet: prompts down, steps across."), _PICTURES),
    compare,
    group="Runs",
    is_output=True,
    fingerprint=look_at_run,
)

NODES = (RUNS, COMPARE)
