"""A worker's next run finds the base in memory, and learns from it exactly what it would have."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import config_for, folder_for

from dreambooth_core.errors import Stopped
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.jobs import Event, RunFolder
from dreambooth_core.trainer import run as runs
from dreambooth_core.trainer import train as trains
from dreambooth_core.trainer.kept import Kept
from dreambooth_core.trainer.prepare import text_fingerprint

CPU = torch.device("cpu")
Keep = Callable[..., Kept]


def losses(folder: RunFolder) -> list[float]:
    return [
        event["loss"]
        for event in folder.events
        if event["kind"] == "progress" and event.get("stage") == "train"
    ]


def test_the_next_run_reads_and_encodes_nothing_and_learns_the_same(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    monkeypatch.setattr(runs, "estimate_of", lambda *_: None)
    monkeypatch.setattr(runs, "loss_chart", lambda *_: b"")
    changes = {
        "optim__learning_rate": 1e-2,
        "method__train_text_encoder": "true",
        "memory__gradient_checkpointing": "true",
        "run__mixed_precision": "bf16",
        "log__every_steps": 1,
        "run__steps": 2,
    }
    first = folder_for(config_for(base, pictures, tmp_path / "one", **changes))
    runs.run(first, kept=kept)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it was read again")

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(trains, "load_base", refuse)
    monkeypatch.setattr(kept, "keep", fail)  # which costs no run
    second = folder_for(config_for(base, pictures, tmp_path / "two", **changes))
    runs.run(second, kept=kept)
    assert len(losses(first)) == 2 and losses(second) == losses(first)
    stages = [[event.get("stage") for event in folder.events] for folder in (first, second)]
    assert "latents" in stages[0] and "latents" not in stages[1]
    assert list(second.events)[-1]["kind"] == "finished"
    told = [str(list(folder.events)) for folder in (first, second)]
    assert "keeping the base" in told[1] and "keeping the base" not in told[0]


def test_a_run_that_is_stopped_leaves_its_base(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    monkeypatch.setattr(runs, "estimate_of", lambda *_: None)
    config = config_for(base, pictures, tmp_path, log__every_steps=1, run__steps=3)
    folder = folder_for(config)

    def stop(event: Event) -> None:
        if event.get("stage") == "train":
            folder.control.request("stop")

    with pytest.raises(Stopped):
        runs.run(folder, on_event=stop, kept=kept)
    assert len(losses(folder)) == 1
    parts = kept.take(config.base, torch.float32, CPU, unrounded=True)
    assert parts is not None
    read = load_base(config.base).models.values()
    assert fingerprint(*parts.models.values()) == fingerprint(*read)


@pytest.fixture
def own(base: Path, tmp_path: Path) -> Path:
    """A base whose files a test may touch."""
    return Path(shutil.copytree(base, tmp_path / "base"))


@pytest.fixture
def keep(own: Path) -> Keep:
    """Something that has kept a base, and the base."""

    def make(dtype: torch.dtype = torch.float32, change: str = "") -> Kept:
        kept, options = Kept(), BaseOptions(model=str(own))
        assert kept.take(options, dtype, CPU, unrounded=False) is None
        parts = load_base(options)
        for model in parts.models.values():
            model.to(dtype)
        mark = fingerprint(*parts.models.values())
        if change == "weights":
            with torch.no_grad():
                next(parts.denoiser.parameters()).view(-1)[0] += 1
        kept.store("images", None).put("key", 1)
        kept.keep(parts, "" if change == "trained" else mark)
        return kept

    return make


def taken(
    kept: Kept,
    own: Path,
    dtype: torch.dtype = torch.float32,
    *,
    unrounded: bool = False,
    **options: Any,
) -> Components | None:
    wanted = replace(BaseOptions(model=str(own)), **options)
    return kept.take(wanted, dtype, CPU, unrounded=unrounded)


def test_a_base_is_given_once_and_is_as_it_was_read(keep: Keep, own: Path) -> None:
    kept = keep()
    parts = taken(kept, own, torch.bfloat16, unrounded=True)  # in fp32 it serves everyone
    assert parts is not None and parts.fingerprint == load_base(BaseOptions(str(own))).fingerprint
    for network in parts.networks:
        assert not network.training
        assert not any(p.requires_grad or p.device != CPU for p in network.parameters())
    assert kept.store("images", None).get("key") == 1
    assert taken(kept, own) is None


@pytest.mark.parametrize("locked", [False, True])
def test_mapped_files_are_let_go_where_they_would_be_locked(
    base: Path, monkeypatch: pytest.MonkeyPatch, locked: bool
) -> None:
    monkeypatch.setattr("dreambooth_core.trainer.kept.LOCKED", locked)
    kept, options = Kept(), BaseOptions(model=str(base))
    kept.take(options, torch.float32, CPU, unrounded=False)
    parts = load_base(options)
    before = [p.data_ptr() for p in parts.vae.parameters()]
    kept.keep(parts, fingerprint(*parts.models.values()))
    assert (before == [p.data_ptr() for p in parts.vae.parameters()]) is not locked


def test_a_rounded_base_serves_who_rounds_it_so(keep: Keep, own: Path) -> None:
    bf16 = torch.bfloat16
    assert taken(keep(bf16), own, bf16) is not None
    assert taken(keep(bf16), own, bf16, unrounded=True) is None
    assert taken(keep(bf16), own, torch.float32) is None


def test_another_base_is_read_and_the_old_one_let_go(keep: Keep, own: Path) -> None:
    kept = keep()
    assert taken(kept, own, clip_skip=2) is None
    assert kept.store("images", None).get("key") == 1  # its key tells which autoencoder made it
    assert taken(kept, own) is None
    assert kept.store("images", None).get("key") is None


def test_files_that_have_changed_are_read(keep: Keep, own: Path) -> None:
    kept = keep()
    file = next(own.rglob("*.safetensors"))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert taken(kept, own) is None


@pytest.mark.parametrize("change", ["weights", "trained"])
def test_what_training_has_changed_is_not_kept(keep: Keep, own: Path, change: str) -> None:
    kept = keep(change=change)
    assert taken(kept, own) is None


def test_nothing_is_kept_where_memory_is_short(
    keep: Keep, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreambooth_core.memory.wanted.LEAST", 1.0)
    assert taken(keep(), own) is None


def test_captions_are_told_apart_by_how_they_are_encoded(base: Path) -> None:
    """The same text encoder may be read otherwise: by another family, or another activation."""
    parts = load_base(BaseOptions(model=str(base)))
    mark = text_fingerprint(parts)
    assert text_fingerprint(load_base(BaseOptions(model=str(base)))) == mark
    other = copy(parts.family)
    other.name = "another"
    assert text_fingerprint(replace(parts, family=other)) != mark
    config = parts.text_encoders[0].config
    config.transformers_version = "another"
    assert text_fingerprint(parts) == mark
    config.hidden_act = "gelu_new"
    assert text_fingerprint(parts) != mark
