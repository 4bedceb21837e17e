"""What a training node asks for, as a run of the engine: found again, gone on with, or new."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from dreambooth_core.bases.embedded import EMBEDDED
from dreambooth_core.config.describe import flatten, nest
from dreambooth_core.disk import write_text
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import Proposal, RunFolder, list_runs, saved_steps
from dreambooth_core.jobs.files import to_json
from dreambooth_core.options import TrainConfig

from . import engine, host
from .bases import SplitBase
from .concepts import Concept
from .learned import results_of
from .settings import FIRST, Settings
from .words import SENT

FILE = "comfyui.json"
"""In a run's folder: what was asked for, so that the same is not trained twice."""

STARTS_FROM = "method.init_from"
LENGTH = ("run.steps", "run.epochs")
_PLACE = ("run.name", "run.output", "run.resume")
_WATCHING = ("validation.", "log.", "publish.")
_KEEPING = ("every_minutes", "every_steps", "every_epochs", "first_step", "keep", "at_end")
"""What changes nothing of what is learned."""


@dataclass(frozen=True)
class Request:
    """A training, whole: the engine's configuration and a name for it."""

    name: str
    config: dict[str, Any]
    """Every value by its dotted key, presets included."""
    sources: tuple[str, ...]
    """Fingerprints of the base and of each concept's images."""

    @property
    def key(self) -> str:
        """The same for two requests that learn the same, if for another time. Values that are the
        defaults are left out, so that an option that comes new makes nobody a stranger."""
        aside = {*LENGTH, *_PLACE, *(f"save.{name}" for name in _KEEPING), "memory.budget"}
        usual = _defaults()
        same = {
            FIRST.get(name, name): value
            for name, value in self.config.items()
            if name not in aside
            and not name.startswith(_WATCHING)
            and (name not in usual or value != usual[name])
        }
        return hashlib.sha256(to_json([same, self.sources]).encode()).hexdigest()

    @property
    def samples(self) -> dict[str, Any]:
        """Which sample images are made."""
        return {k: v for k, v in self.config.items() if k.startswith("validation.")}

    @property
    def length(self) -> list[Any]:
        """Steps, and the epochs that count where no steps are given."""
        return [self.config.get(name) for name in LENGTH]


@cache
def _defaults() -> dict[str, Any]:
    return flatten(TrainConfig())


@dataclass(frozen=True)
class Found:
    """An earlier run of the same request."""

    folder: RunFolder
    action: str
    """``use`` its result, ``watch`` it as it runs, or ``resume`` it."""
    notes: tuple[str, ...] = ()
    step: int | None = None
    """Of the result to use or the checkpoint to go on from; None for the last."""


@dataclass
class Draft:
    """A request in the making: what the node sets, over what its settings say."""

    name: str
    base: str | SplitBase
    """A checkpoint's listed name, an embedded base's, or a base in several files."""
    concepts: Sequence[Concept]
    settings: Settings | None
    values: dict[str, Any] = field(default_factory=dict)

    def request(self) -> Request:
        """Asks the engine for the whole configuration. Raises ``UserError`` for a wrong value."""
        given = self.settings or Settings()
        files: list[Path] = []
        named = ""
        if isinstance(self.base, SplitBase):
            base, files = self.base.values, list(self.base.files)
        elif self.base in EMBEDDED:
            base, named = {"base.model": self.base}, str(self.base)
        else:
            files = [host.model_path("checkpoints", self.base)]
            base = {"base.model": str(files[0])}
        masked = [concept.masks for concept in self.concepts if concept.masks]
        if STARTS_FROM in self.values:
            files.append(Path(self.values[STARTS_FROM]))
        values = {
            **base,
            "data.captions": self.concepts[0].captions,
            **({"data.masks": masked[0]} if masked else {}),
            **given.values,
            **self.values,
        }
        config = nest(values) | {"concepts": [concept.options for concept in self.concepts]}
        pictures = [concept.fingerprint for concept in self.concepts]
        if marks := given.values.get("marks.file"):
            pictures.append(_identity(Path(marks)))
        return Request(
            self.name,
            whole(config, given.presets, [*given.texts, *_forced(self.values)]),
            (named + "\0".join(map(_identity, files)), *pictures),
        )


def _forced(values: dict[str, Any]) -> list[str]:
    """What no override in the settings may change: the node itself says it."""
    return [f"{key}={values[key]}" for key in ("method.kind", "method.rank") if key in values]


def whole(config: dict[str, Any], presets: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """The effective configuration of these layers, by dotted keys, as the engine reads them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SENT
        file.write_text(json.dumps(config), encoding="utf-8")
        asked = {"config": file, "overrides": texts, "preset": presets, "values": True}
        report = engine.task("check", asked)
    found: dict[str, Any] = report["config"]
    return found


def _identity(path: Path) -> str:
    """Of a base's file, without reading gigabytes."""
    facts = path.stat()
    return f"{path.name}\0{facts.st_size}\0{facts.st_mtime_ns}"


def find(request: Request) -> Found | None:
    """The latest earlier run that answers the request or can go on to do so."""
    for run in list_runs(host.runs_folder()):
        folder = RunFolder(run.path)
        asked = _asked(folder)
        if asked.get("key") != request.key:
            continue
        if run.state in ("running", "waiting"):
            return Found(folder, "watch")
        if run.state == "finished" and asked.get("length") == request.length:
            return Found(folder, "use", _notes(asked, request))
        steps = request.length[0]
        if steps is None:
            if run.state != "finished" and asked.get("length") == request.length:
                return Found(folder, "resume", step=_latest(folder, None))
            continue
        if steps in results_of(folder):
            return Found(folder, "use", _notes(asked, request), steps)
        latest = _latest(folder, steps)
        if latest is not None:
            return Found(folder, "resume", step=latest)
    return None


def _notes(asked: dict[str, Any], request: Request) -> tuple[str, ...]:
    if asked.get("samples") == request.samples:
        return ()
    return ("the sample images are those of before: other prompts alone train nothing anew",)


def _latest(folder: RunFolder, limit: int | None) -> int | None:
    """The last checkpoint, none above the limit."""
    steps = saved_checkpoints(folder)
    below = [step for step in steps if limit is None or step <= limit]
    return max(below, default=None)


def saved_checkpoints(folder: RunFolder) -> list[int]:
    """The steps that a run can go on from."""
    return list(saved_steps(folder.checkpoints))


def _asked(folder: RunFolder) -> dict[str, Any]:
    try:
        return read_json(folder.path / FILE)
    except UserError:
        return {}


def prepare(request: Request, found: Found | None) -> tuple[RunFolder, Proposal | None]:
    """The run's folder with its configuration, ready to be started; of an earlier run what is
    proposed to it, which changes nothing before its worker accepts it."""
    if found is None:
        folder = RunFolder.create(host.runs_folder(), request.name)
        resume = ""
    else:
        folder = found.folder
        resume = "" if found.step is None else str(found.step)
    config = {
        **request.config,
        "run.name": folder.name,
        "run.output": str(host.runs_folder()),
        "run.resume": resume,
    }
    asked = {"key": request.key, "length": request.length, "samples": request.samples}
    files = {
        FILE: to_json(asked, indent=2) + "\n",
        folder.config.name: to_json(nest(config), indent=2) + "\n",
    }
    if found is not None:
        return folder, Proposal.make(folder, files)
    for name, text in files.items():
        write_text(folder.path / name, text)
    return folder, None
