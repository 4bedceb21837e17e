"""What only shows or passes on a result may fail in every way: the result is there, and proven."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.runs import config_for, folder_for, go_on

from dreambooth_core.jobs import RunFolder, read_receipt, status
from dreambooth_core.trainer import publish
from dreambooth_core.trainer.run import run
from dreambooth_core.worker import supervise

TRAINER = "dreambooth_core.trainer"
DECORATIVE = {
    "error": (
        f"{TRAINER}.run.loss_chart",
        f"{TRAINER}.validation.generate",
        f"{TRAINER}.reports._Board.add",
        f"{TRAINER}.reports._Wandb.add",
        f"{TRAINER}.publish.model_card",
    ),
    "memory": (
        f"{TRAINER}.run.estimate_of",
        f"{TRAINER}.reports._Board.__init__",
        f"{TRAINER}.reports._Wandb.__init__",
        f"{TRAINER}.results.Results.arrange_samples",
        "huggingface_hub.HfApi",
    ),
    "disk": (
        f"{TRAINER}.run.write_bytes",
        f"{TRAINER}.reports._Board.image",
        f"{TRAINER}.reports._Wandb.image",
        f"{TRAINER}.publish.write_text",
    ),
    "closing": (
        f"{TRAINER}.validation.write_bytes",
        f"{TRAINER}.reports._Board.close",
        f"{TRAINER}.reports._Wandb.close",
        f"{TRAINER}.run.publish.publish",
    ),
}
"""Every function whose work is only shown or passed on, in groups of which none keeps another from
being called."""


class Strange(Exception):
    """An error that derives from nothing else, as some libraries' and hosts' do."""


ERRORS: dict[str, Callable[[], BaseException]] = {
    "error": lambda: RuntimeError("two\nlines"),
    "memory": lambda: torch.cuda.OutOfMemoryError("CUDA out of memory"),
    "disk": lambda: OSError(28, "No space left on device"),
    "closing": lambda: Strange("x"),
}

OPTIONS: dict[str, Any] = {
    "run__steps": 1,
    "validation__prompts": "[a ball]",
    "validation__num_inference_steps": 1,
    "log__tensorboard": "true",
    "log__wandb": "true",
    "publish__repository": "me/ball",
    "publish__licence": "openrail++",
    "publish__consent": "a ball",
}


@pytest.fixture
def whole(base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run that shows and passes on all it can; neither hub nor W&B are real."""
    there = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    library = SimpleNamespace(init=lambda **_: there, Image=lambda image: image)
    monkeypatch.setitem(sys.modules, "wandb", library)
    monkeypatch.setattr(publish, "find_token", lambda: "token")
    hub = SimpleNamespace(
        create_repo=lambda *_, **__: SimpleNamespace(repo_id="me/ball"),
        upload_file=lambda **_: None,
    )
    monkeypatch.setattr("huggingface_hub.HfApi", lambda **_: hub)
    return folder_for(config_for(base, pictures, tmp_path, **OPTIONS))


@pytest.mark.parametrize("kind", DECORATIVE)
def test_each_failure_is_a_warning(
    whole: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    called = {name: _raising(monkeypatch, name, ERRORS[kind]) for name in DECORATIVE[kind]}

    def listen(event: dict[str, Any]) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    assert supervise(whole, on_event=listen) == 0
    assert all(called.values())
    _assert_proven(whole)
    warnings = [event for event in whole.events if event["kind"] == "warning"]
    assert len(warnings) >= len(called)


def test_a_result_that_cannot_be_written_leaves_what_was_learned(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_for(config_for(base, pictures, tmp_path, run__steps=2))
    _raising(monkeypatch, "dreambooth_core.trainer.results.Results.write", ERRORS["error"])
    with pytest.raises(RuntimeError):
        run(folder)
    monkeypatch.undo()
    go_on(folder, proven=True)
    trained = [event["step"] for event in folder.events if event.get("stage") == "train"]
    assert trained == [1, 2]  # not once more
    _assert_proven(folder)


def _raising(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Callable[[], BaseException]
) -> list[int]:
    called: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        called.append(1)
        raise error()

    monkeypatch.setattr(name, fail)
    return called


def _assert_proven(folder: RunFolder) -> None:
    receipt = read_receipt(folder)
    assert (folder.path / receipt["result"]["file"]).is_file()
    assert receipt["proof"]["passed"]
    assert status(folder).state == "finished"
