"""Checkpoints: everything needed to go on as if nothing had happened.

A checkpoint is a folder ``checkpoints/step-000100`` with the trained weights, the state of the
optimizer and of whatever else has one, and ``state.json`` with the hash of every file and of
itself. It is written beside and exchanged whole, so a folder with that name is always whole. A
*rolling* checkpoint is only there to resume from: the next one replaces it.
Noise, data order and dropout depend on (seed, step) alone, so no generator's state is in it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.bases.locate import is_commit
from dreambooth_core.disk import replacing, replacing_folder, sha256, tidy, write_json
from dreambooth_core.disk.reading import parse_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.formats.storage import read_metadata, read_tensors, write_tensors
from dreambooth_core.jobs.checkpoints import (
    MANIFEST,
    ROLLING,
    is_rolling,
    name_of,
    prune,
    saved_steps,
)
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.methods.table import METHODS
from dreambooth_core.optim.ema import Ema
from dreambooth_core.optim.stepper import Stepper
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.distributed import Shards, scattered
from dreambooth_core.trainer.saving import Context

log = logging.getLogger(__name__)

WEIGHTS = "trained.safetensors"
STATES = "states.pt"
VERSION = 2
"""1 had no checksum of the manifest; those checkpoints still resume."""


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


def save_state(root: Path, state: TrainState, *, rolling: bool = False) -> Path:
    """Writes a checkpoint below ``root`` and returns its folder.

    Args:
        root: the run's folder of checkpoints.
        state: what it holds.
        rolling: whether the next checkpoint replaces it.

    Raises:
        SaveFailed: it could not be written; earlier checkpoints are untouched.
    """
    final = root / name_of(state.step)
    with replacing_folder(final) as part:
        write_tensors(part / WEIGHTS, state.weights, {"step": str(state.step)})
        with replacing(part / STATES) as file:
            torch.save(state.states, file)
        manifest: dict[str, Any] = {
            "version": VERSION,
            "step": state.step,
            "identity": state.identity,
            "files": {name: sha256(part / name) for name in (WEIGHTS, STATES)},
            **({ROLLING: True} if rolling else {}),
        }
        write_json(part / MANIFEST, {**manifest, "checksum": checksum(manifest)})
    return final


def checksum(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, whatever the order of its keys; of its own, nothing."""
    said = {key: value for key, value in manifest.items() if key != "checksum"}
    text = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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
        UserError: it is damaged, or of a version that is not known; names the newest earlier one,
            if there is any.
    """
    with _sound(folder):
        for name in (MANIFEST, WEIGHTS, STATES):
            if not (folder / name).is_file():  # a pipe in its place would be waited for
                raise ValueError(f"{name} is not there")
        manifest = _read_manifest(folder)
        for name, expected in manifest["files"].items():
            if sha256(folder / name) != expected:
                raise ValueError(f"{name} is not what was written")
        step, identity = manifest["step"], dict(manifest["identity"])
        if read_metadata(folder / WEIGHTS).get("step") != str(step):
            raise ValueError(f"{MANIFEST} names another step than {WEIGHTS}")
        weights = read_tensors(folder / WEIGHTS)
        states = torch.load(folder / STATES, map_location="cpu", weights_only=True)
    return TrainState(step, weights, states, identity)


DAMAGED: tuple[type[Exception], ...] = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    RuntimeError,
)
DAMAGED += (AttributeError, pickle.UnpicklingError)
"""What reading a checkpoint raises that is not what was written."""


@contextmanager
def _sound(folder: Path) -> Iterator[None]:
    """Inside, what goes wrong means that the checkpoint is damaged."""
    try:
        yield
    except DAMAGED as error:
        raise UserError(
            f"this checkpoint is damaged ({error})", where=folder, do=_advice(folder)
        ) from error


def _read_manifest(folder: Path) -> dict[str, Any]:
    """What ``state.json`` says, checked.

    Raises:
        UserError: a version that is not known.
        ValueError: it is damaged.
    """
    manifest = parse_json((folder / MANIFEST).read_bytes())
    version = manifest.get("version")
    if version not in (1, VERSION) or isinstance(version, (bool, float)):
        raise UserError(
            f"this checkpoint is of version {version!r}; known are 1 and {VERSION}",
            where=folder,
            do=f"Resume with the version that wrote it. {_advice(folder)}",
        )
    if (version > 1 or "checksum" in manifest) and manifest.get("checksum") != checksum(manifest):
        raise ValueError(f"{MANIFEST} is not what was written")
    if set(manifest["files"]) != {WEIGHTS, STATES}:
        raise ValueError(f"{MANIFEST} names other files than a checkpoint has")
    step = manifest["step"]
    if type(step) is not int or folder.name != name_of(step):
        raise ValueError(f"{MANIFEST} names step {step!r}, the folder {folder.name}")
    return manifest


def _advice(folder: Path) -> str:
    digits = folder.name.removeprefix("step-")
    own = int(digits) if digits.isdigit() else 0
    earlier = [step for step in saved_steps(folder.parent) if step < own]
    if earlier:
        return f"Resume from the one before it: run.resume={earlier[-1]}."
    return "There is no earlier one: start anew."


def check_resume(folder: Path, config: TrainConfig) -> None:
    """Refuses what can be refused before anything is loaded or made.

    Raises:
        UserError: the checkpoint is damaged, or belongs to other settings.
    """
    with _sound(folder):
        saved = dict(_read_manifest(folder)["identity"])
    refuse_changes(saved, settings_identity(config))


def settings_identity(config: TrainConfig) -> dict[str, Any]:
    """Settings that cannot change when a run is resumed."""
    method = config.method
    # The adapter that pairs are compared with is made anew from its file when a run resumes.
    compared = {"compared_with": sha256(method.init_from) if method.init_from else None}
    return {
        "method": method.kind,
        "rank": method.rank,
        "alpha": method.alpha,
        "token": method.placeholder_token if METHODS[method.kind].learns_token else None,
        "quantize": config.memory.quantize,
        "targets": method.target_modules,
        "optimizer": config.optim.optimizer,
        "ema": config.optim.ema.enabled,
        **(compared if config.prefers else {}),
        "training_adapter": sha256(method.training_adapter) if method.training_adapter else None,
    }


TOLD = ("commit",)
"""Keys of an identity that say where something came from; the fingerprint says what it is."""


def commit_in(folder: Path) -> str | None:
    """The hub's commit of the base that a checkpoint belongs to; None where it names none.

    A damaged checkpoint names none here: :func:`load_state` says what is wrong with it.
    """
    try:
        with _sound(folder):
            commit = _read_manifest(folder)["identity"].get("commit")
    except UserError:
        return None
    return commit if is_commit(commit if isinstance(commit, str) else None) else None


def refuse_changes(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Raises ``UserError`` if what cannot change between a run's parts has changed."""
    changed = [
        f"{key} was {saved.get(key)!r} and is now {value!r}"
        for key, value in current.items()
        if key not in TOLD and saved.get(key) != value
    ]
    if changed:
        raise UserError(
            f"this checkpoint was made with other settings: {'; '.join(changed)}",
            where="run.resume",
            do="Set them back, or start a new run.",
        )


@dataclass
class Trained:
    """What is trained, with all that a checkpoint holds of it, which it writes into the folder."""

    run: Context
    parts: Components
    method: Method
    trainables: list[Trainable]
    stepper: Stepper
    ema: Ema | None
    scaler: Any
    """``torch.amp.GradScaler``."""
    shards: Shards | None
    """Where the denoiser is in pieces over the processes."""

    @property
    def identity(self) -> dict[str, Any]:
        """What cannot change when a run is resumed."""
        return {
            **settings_identity(self.run.config),
            "base": self.parts.fingerprint,
            "commit": self.parts.commit,
            "family": self.parts.family.name,
            "trained": [group.component for group in self.trainables],
            "parameters": sum(group.count for group in self.trainables),
        }

    def settle(self) -> None:
        """Streamed weights are in RAM from here on, to be read and written, until the next step."""
        if self.parts.streaming:
            self.parts.streaming.settle()

    @contextmanager
    def as_result(self, *, whole: bool = False) -> Iterator[None]:
        """Inside, the models hold the weights to sample with and to save as the result.

        With ``whole``, those of the main process are not in pieces; all processes must come here.
        """
        self.settle()
        with (
            self.ema.applied() if self.ema else self.stepper.evaluation(),
            self.method.as_result(),
            self.shards.whole() if whole and self.shards else nullcontext(),
        ):
            try:
                yield
            finally:
                self.settle()

    def at(self, step: int) -> TrainState:
        """The state after ``step`` steps; its tensors are the live ones. In pieces all processes
        must ask for it, and the main one alone gets it."""
        self.settle()
        states: dict[str, Any] = {"optimizer": self.stepper.state_dict()}
        if self.ema:
            states["ema"] = self.ema.state_dict()
        if self.scaler.is_enabled():
            states["scaler"] = self.scaler.state_dict()
        weights = self.method.tensors()
        if self.shards:
            weights, states = self.shards.gathered(weights), self.shards.gathered(states)
        return TrainState(step, weights, states, self.identity)

    def restore(self, state: TrainState) -> None:
        """Goes back to a saved state."""
        self.settle()
        self.method.restore(scattered(state.weights, self.method.tensors()))
        self.stepper.load_state_dict(state.states["optimizer"])
        if self.ema:
            self.ema.load_state_dict(scattered(state.states["ema"], self.ema.averages))
        if "scaler" in state.states:
            self.scaler.load_state_dict(state.states["scaler"])

    @property
    def takes_part(self) -> bool:
        """Whether this process has a part in it: the main one, or in pieces all."""
        return self.run.processes.is_main or self.shards is not None

    @property
    def _root(self) -> Path:
        return self.run.folder.checkpoints

    def are_kept(self, step: int) -> bool:
        """Whether there is a checkpoint of this step that stays: nothing else may replace it.
        In pieces all processes must ask, and hear what the main one sees."""
        path = saved_steps(self._root).get(step)
        kept = path is not None and not is_rolling(path)
        return self.run.processes.agree(kept) if self.shards else kept

    def latest(self) -> str:
        """What the run resumes from, in words."""
        last = max(saved_steps(self._root), default=None)
        if last is None:
            return "nothing is saved, it resumes from its beginning"
        return f"it resumes from step {last} (checkpoints/{name_of(last)})"

    def save(self, step: int) -> None:
        """Writes a checkpoint to resume from; on a full disk, once there is room."""
        if self.takes_part:
            state, what = self.at(step), f"the checkpoint of step {step}"
            if self.run.processes.is_main:
                self._tell(self.run.saver(what, lambda: save_state(self._root, state)), step)

    def save_rolling(self, step: int) -> None:
        """Writes a checkpoint that the next one replaces. It is worth no waiting: where it cannot
        be written, that is a warning."""
        if self.takes_part and not self.are_kept(step):
            with self.run.reporter.decorative(f"saving the resume state of step {step}"):
                state = self.at(step)
                if self.run.processes.is_main:
                    self.run.asked.look()
                    self._tell(save_state(self._root, state, rolling=True), step)

    def _tell(self, path: Path, step: int) -> None:
        self.run.reporter.saved(path, step)
        prune(self._root, self.run.config.save.keep)
