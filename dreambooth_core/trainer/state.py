"""Checkpoints: everything needed to go on as if nothing had happened.

A checkpoint is a folder ``checkpoints/step-000100`` with the trained weights, the state of the
optimizer and of whatever else has one, and ``state.json`` with the hash of every file. It is
written beside and exchanged whole, so a folder with that name is always whole.
Noise, data order and dropout depend on (seed, step) alone, so no generator's state is in it.
"""

from __future__ import annotations

import json
import logging
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.disk import remove, replacing, replacing_folder, sha256, tidy, write_json
from dreambooth_core.errors import UserError
from dreambooth_core.formats.storage import read_tensors, write_tensors

log = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"
STATES = "states.pt"
MANIFEST = "state.json"
VERSION = 1
_NAME = re.compile(r"^step-(\d+)$")


@dataclass
class TrainState:
    """What a checkpoint holds."""

    step: int
    """Optimizer steps that are done."""
    weights: dict[str, Tensor]
    """Everything trained, in fp32."""
    states: dict[str, Any]
    """State dicts of the optimizer, schedule, scaler, EMA, by name."""
    identity: dict[str, Any]
    """What the checkpoint belongs to and cannot be resumed without: base, method, rank …"""


def name_of(step: int) -> str:
    """The folder name of a step's checkpoint."""
    return f"step-{step:06d}"


def save_state(root: Path, state: TrainState) -> Path:
    """Writes a checkpoint below ``root`` and returns its folder.

    Raises:
        SaveFailed: it could not be written; earlier checkpoints are untouched.
    """
    final = root / name_of(state.step)
    with replacing_folder(final) as part:
        write_tensors(part / WEIGHTS, state.weights, {"step": str(state.step)})
        with replacing(part / STATES) as file:
            torch.save(state.states, file)
        manifest = {
            "version": VERSION,
            "step": state.step,
            "identity": state.identity,
            "files": {name: sha256(part / name) for name in (WEIGHTS, STATES)},
        }
        write_json(part / MANIFEST, manifest)
    return final


def saved_steps(root: Path) -> dict[int, Path]:
    """The checkpoints below ``root``, oldest first, by step."""
    found = {}
    if root.is_dir():
        for path in root.iterdir():
            match = _NAME.match(path.name)
            if match and (path / MANIFEST).is_file():
                found[int(match.group(1))] = path
    return dict(sorted(found.items()))


def prune(root: Path, keep: int | None) -> None:
    """Deletes the oldest checkpoints beyond ``keep``; None keeps all."""
    if keep is None:
        return
    for path in list(saved_steps(root).values())[:-keep]:
        remove(path)


def choose(root: Path, wanted: str) -> Path | None:
    """The checkpoint that ``run.resume`` names; None if it asks for the latest of none.

    Raises:
        UserError: there is no such checkpoint; says which there are.
    """
    tidy(root)
    steps = saved_steps(root)
    if wanted == "latest":
        return next(reversed(steps.values()), None)
    number = wanted.removeprefix("step-")
    if number.isdigit() and int(number) in steps:
        return steps[int(number)]
    there = ", ".join(map(str, steps)) or "none"
    raise UserError(
        f"no checkpoint {wanted!r}", where="run.resume", do=f'Saved steps: {there}; or "latest".'
    )


def load_state(folder: Path) -> TrainState:
    """Reads a checkpoint back.

    Raises:
        UserError: it is damaged; names the newest earlier one, if there is any.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest["files"].items():
            if sha256(folder / name) != expected:
                raise ValueError(f"{name} is not what was written")
        weights = read_tensors(folder / WEIGHTS)
        states = torch.load(folder / STATES, map_location="cpu", weights_only=True)
        step, identity = int(manifest["step"]), dict(manifest["identity"])
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RuntimeError,
        pickle.UnpicklingError,
    ) as error:
        raise UserError(
            f"this checkpoint is damaged ({error})", where=folder, do=_advice(folder)
        ) from error
    return TrainState(step, weights, states, identity)


def _advice(folder: Path) -> str:
    match = _NAME.match(folder.name)
    own = int(match.group(1)) if match else 0
    earlier = [step for step in saved_steps(folder.parent) if step < own]
    if earlier:
        return f"Resume from the one before it: run.resume={earlier[-1]}."
    return "There is no earlier one: start anew."


def refuse_changes(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises ``UserError`` if what cannot change between a run's parts has changed."""
    changed = [
        f"{key} was {saved.get(key)!r} and is now {value!r}"
        for key, value in current.items()
        if saved.get(key) != value
    ]
    if changed:
        raise UserError(
            f"this checkpoint was made with other settings: {'; '.join(changed)}",
            where="run.resume",
            do="Set them back, or start a new run.",
        )
