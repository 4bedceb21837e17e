"""Short runs in this process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from dreambooth_core.config.loading import dump, load
from dreambooth_core.data.cache import MemoryStore
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.jobs import Event, RunFolder
from dreambooth_core.methods.base import Trainable
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer import decide as decides
from dreambooth_core.trainer import run as runs
from dreambooth_core.trainer.decide import Decision
from dreambooth_core.trainer.distributed import join
from dreambooth_core.trainer.kept import Kept
from dreambooth_core.trainer.reports import Reporter
from dreambooth_core.trainer.run import run
from dreambooth_core.trainer.saving import Context
from dreambooth_core.trainer.train import Training

Changes = dict[str, Any]


def config_for(base: Path, pictures: Path, root: Path, **changes: Any) -> TrainConfig:
    """A small run's configuration; ``section__field=value`` changes a field."""
    values: Changes = {
        "base__model": base,
        "data__resolution": 64,
        "data__crop": "center",
        "method__rank": 4,
        "method__alpha": 4,
        "optim__learning_rate": 1e-3,
        "run__output": root,
        "run__steps": 4,
        "run__batch_size": 2,
        "save__precision": "fp32",
        "log__tensorboard": "false",
        **changes,
    }
    concept = (
        f"concepts=[{{images: '{pictures.as_posix()}', instance_prompt: a photo of sks ball, "
        "class_prompt: a photo of a ball}]"
    )
    overrides = [f"{key.replace('__', '.')}={_text(value)}" for key, value in values.items()]
    return load(TrainConfig, overrides=[concept, *overrides])


PRIOR: Changes = {
    "prior__enabled": "true",
    "prior__num_class_images": 3,
    "prior__num_inference_steps": 2,
    "prior__guidance_scale": 2.0,
}
"""Prior preservation with few, quickly made class images."""


def _text(value: Any) -> str:
    return value.as_posix() if isinstance(value, Path) else str(value)


def folder_for(config: TrainConfig) -> RunFolder:
    """A new run folder with the configuration in it."""
    folder = RunFolder.create(config.run.output, config.run.name)
    _write(config, folder)
    return folder


def _write(config: TrainConfig, folder: RunFolder) -> None:
    text = dump(config)
    folder.config.write_text(text, encoding="utf-8")
    _written[text] = copy.deepcopy(config)


_written: dict[str, TrainConfig] = {}
"""What the configurations say that were written and not read yet, by their texts."""


def read_quickly(schema: type[TrainConfig], **given: Any) -> TrainConfig:
    """What :func:`load` makes of a configuration that was written here, without the tenth of
    a short run that reading it takes; that the two are equal is for the tests of the writing."""
    (file,) = given["files"]
    config = _written.pop(Path(file).read_text(encoding="utf-8"), None)
    return config or load(schema, **given)


def training_of(config: TrainConfig, folder: RunFolder, device: str = "cpu") -> Training:
    """A run that is not trained yet."""
    processes = join(device)
    decision = decide_quickly(config, processes=processes)
    run = Context(decision.config, folder, processes, Reporter(folder))
    return Training(decision, run, Kept())


class KeptBase(Kept):
    """Keeps the base for the next run, and nothing that was encoded."""

    def store(self, things: str, limit: int | None) -> MemoryStore:
        """A cache in memory, empty as a first run's."""
        self._before.clear()
        return super().store(things, limit)


_kept = Kept()


def train(config: TrainConfig, *, decorated: bool = False, proven: bool = False) -> RunFolder:
    """Does a whole run in this process, bare unless asked otherwise. As in a worker that goes on,
    a base that the last one left unchanged is not read again; one that is told new tokens is."""
    folder = folder_for(config)
    with _as_far_as(decorated, proven):
        fresh = decorated or METHODS[config.method.kind].learns_token
        run(folder, kept=None if fresh else _kept)
    return folder


def _as_far_as(decorated: bool, proven: bool) -> AbstractContextManager[None]:
    if decorated:
        return nullcontext()
    return undecorated() if proven else bare()


_tried: dict[str, tuple[Components, list[Trainable]]] = {}
"""Bases without weights, with what a method trains in them: made once for each of both."""
_decide, _attach = decides.decide, decides._attach


def decide_quickly(config: TrainConfig, **options: Any) -> Decision:
    """A decision about a run, for which no base and method is tried out twice: nothing of that is
    changed by a run, and it takes a fifth of the time of a short one. Tokens that are learned are
    added to tokenizers, so those are tried each time."""
    base = Path(config.base.model)
    if METHODS[config.method.kind].learns_token or options.get("weights") or not base.exists():
        return _decide(config, **options)
    files = sorted(path for path in (base, *base.rglob("*")) if path.is_file())
    states = [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    key = repr((states, config.base, config.method))

    def load(*given: Any, **more: Any) -> Components:
        return _tried[key][0] if key in _tried else load_base(*given, **more)

    def attach(config: TrainConfig, parts: Components, *given: Any) -> list[Trainable]:
        if key not in _tried:
            if len(_tried) >= 50:
                _tried.clear()
            _tried[key] = parts, _attach(config, parts, *given)
        return _tried[key][1]

    with (
        mock.patch.object(decides, "load_base", load),
        mock.patch.object(decides, "_attach", attach),
    ):
        return _decide(config, **options)


@contextmanager
def undecorated() -> Iterator[None]:
    """Runs without the estimate of their memory and the picture of their losses, which take a
    third of the time of a short one, and decided quickly."""
    with (
        mock.patch.object(runs, "load", read_quickly),
        mock.patch.object(runs, "decide", decide_quickly),
        mock.patch.object(decides, "decide", decide_quickly),
        mock.patch.object(runs, "estimate_of", lambda *_: None),
        mock.patch.object(runs, "loss_chart", lambda *_: b""),
    ):
        yield


@contextmanager
def bare() -> Iterator[None]:
    """Runs without what takes most of the time of a short one: undecorated, and without the proof
    of their result, which every method and every layout has tests of its own for."""
    with undecorated(), mock.patch.object(runs, "prove", lambda *_, **__: {}):
        yield


def go_on(
    folder: RunFolder,
    on_event: Callable[[Event], None] | None = None,
    *,
    decorated: bool = False,
    proven: bool = False,
    **changes: Any,
) -> RunFolder:
    """Resumes a run, from its latest checkpoint unless told otherwise; see :func:`train`."""
    changes = {"run__resume": "latest", **changes}
    overrides = [f"{key.replace('__', '.')}={_text(value)}" for key, value in changes.items()]
    config = load(TrainConfig, files=[folder.config], overrides=overrides)
    _write(config, folder)
    folder.control.mark_start(folder.events.size())
    with _as_far_as(decorated, proven):
        run(folder, on_event=on_event)
    return folder


def losses(folder: RunFolder) -> dict[int, float]:
    """The loss of each step, the latest attempt at it."""
    return {e["step"]: e["loss"] for e in folder.events if e.get("stage") == "train"}
