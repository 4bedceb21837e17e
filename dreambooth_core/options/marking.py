"""A run's images, marked good or bad, and the run that goes on from there. Standard library only:
hosts ask here too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from dreambooth_core.config.describe import flatten
from dreambooth_core.config.reading import read_file
from dreambooth_core.data.marks import BAD, GOOD, NAME, Mark, Marks, read_marks, write_marks
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_made, read_receipt
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig

SHARE = 4
"""A run that goes on is a quarter as long as the one that it goes on from."""
RATE = 0.3
"""And learns at three tenths of its rate."""
FEWEST = 20
"""Steps of it."""
OWN = ("run.name", "run.output", "run.resume")
"""Keys of a configuration that are the run's own."""


def generated(run: RunFolder) -> list[Mark]:
    """The validation images of a run that are there, the first made first, as they are marked.

    Raises:
        UserError: its marks cannot be read.
    """
    file = run.samples / NAME
    marked = {one.image: one.mark for one in read_marks(file).images} if file.exists() else {}
    found: dict[str, Mark] = {}
    for event in run.events:
        name = _name(event) if event["kind"] == "sample" else ""
        if name and (run.samples / name).is_file():
            found[name] = Mark(name, event["prompt"], event["seed"], marked.get(name, ""))
    return list(found.values())


def mark_run(run: RunFolder, changes: Mapping[str, str]) -> Marks:
    """Marks images of a run.

    Args:
        changes: ``good``, ``bad`` or nothing, by the image's name among the run's samples.

    Raises:
        UserError: there is no such image or mark, or nothing tells the run's base.
        SaveFailed: the marks cannot be written.
    """
    known = {one.image: one for one in generated(run)}
    for name in changes:
        if name not in known:
            raise UserError(
                f"this run has made no image {name[:100]!r}",
                where=run.path,
                do="Its images are those in its folder samples.",
            )
    base = read_receipt(run).get("base", {})
    fingerprint = base.get("fingerprint") if isinstance(base, dict) else None
    if not isinstance(fingerprint, str) or not fingerprint:
        raise UserError("nothing tells which base this run is on", where=run.receipt)
    marks = [
        Mark(name, known[name].prompt, known[name].seed, mark) for name, mark in changes.items()
    ]
    return write_marks(run.samples / NAME, fingerprint, marks)


def going_on(run: RunFolder) -> dict[str, Any]:
    """The configuration, by dotted keys, of a run that goes on from a run's adapter with its
    marked images.

    Raises:
        UserError: as :func:`onward`.
    """
    values = {key: value for key, value in _configuration(run).items() if key not in OWN}
    return values | onward(run)


def onward(run: RunFolder) -> dict[str, Any]:
    """What is other in a run that goes on from a run: it learns by pairs where a prompt has good
    and bad images, else from the good ones alone.

    Raises:
        UserError: nothing is marked, or what was trained is not an adapter.
    """
    values = _configuration(run)
    kind = str(values.get("method.kind", "lora"))
    if not METHODS[kind].is_adapter or METHODS[kind].learns_token:
        raise UserError(
            f"{kind} cannot be gone on from: it made no adapter alone",
            where=run.path,
            do="Resume the run with more steps.",
        )
    made, marks = read_made(run), read_marks(run.samples / NAME)
    paired = any(good and bad for good, bad in marks.by_prompt().values())
    if not paired and not marks.of(GOOD):
        raise UserError(
            "no image of this run is marked good",
            where=marks.file,
            do="Mark good ones, and bad ones of the same prompts.",
        )
    changes: dict[str, Any] = {
        "method.init_from": str(made.file),
        "method.init_weight": 1.0,
        "marks.file": str(marks.file),
        "run.steps": max(made.steps // SHARE, FEWEST),
        "optim.lr_warmup_steps": 0,
    }
    if isinstance(rate := values.get("optim.learning_rate"), int | float):
        changes["optim.learning_rate"] = rate * RATE
    if paired:
        changes |= {"objective.loss": "dpo", "method.dropout": 0.0, "method.text_dropout": None}
    return changes


def _configuration(run: RunFolder) -> dict[str, Any]:
    return flatten(read_file(run.config, TrainConfig, {}))


def counted(images: Sequence[Mark]) -> dict[str, int]:
    """How many are good, how many bad, and how many prompts have pairs."""
    good, bad = ({one.prompt for one in images if one.mark == kind} for kind in (GOOD, BAD))
    numbers = {kind: sum(one.mark == kind for one in images) for kind in (GOOD, BAD)}
    return {**numbers, "pairs": len(good & bad)}


def _name(event: Mapping[str, Any]) -> str:
    """Of an event's image, among the run's samples; empty where the event is no such one."""
    path, prompt, seed = (event.get(key) for key in ("path", "prompt", "seed"))
    known = isinstance(path, str) and isinstance(prompt, str) and type(seed) is int
    place = PurePosixPath(str(path))
    return place.name if known and place.parts[:-1] == ("samples",) else ""
