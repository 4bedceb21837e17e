"""The proof on save passes what is right, whatever the precision, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from helpers.runs import config_for, folder_for, undecorated

from dreambooth_core.errors import TrainingFailed
from dreambooth_core.formats.storage import read_tensors, write_tensors
from dreambooth_core.methods.adapters import Lora
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer import run as runs
from dreambooth_core.trainer.proof import Question, prove

Given = tuple[Question, TrainConfig, int | None]
RATE = 1e-5
"""So low that fp16 keeps little of a step, and bf16 next to nothing."""


@pytest.fixture(scope="module")
def asked(
    base: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Given]:
    """What a run asks of the proof."""

    def train(**changes: Any) -> Given:
        given: list[Given] = []

        def record(*args: Any) -> dict[str, Any]:
            given.append(args)
            return {}

        root = tmp_path_factory.mktemp("runs")
        values = {
            "method__kind": "full",
            "method__train_text_encoder": "true",
            "optim__learning_rate": RATE,
            "run__steps": 2,
            **changes,
        }
        with undecorated(), mock.patch.object(runs, "prove", record):
            runs.run(folder_for(config_for(base, pictures, root, **values)))
        return given[0]

    return train


@pytest.mark.parametrize(
    ("computed", "stored"),
    [("bf16", "fp16"), ("bf16", "fp32"), ("full_bf16", "bf16"), ("no", "fp16"), ("no", "fp32")],
)
def test_rounding_is_no_fault(asked: Callable[..., Given], computed: str, stored: str) -> None:
    rounding = {"optim__stochastic_rounding": "true"} if computed == "full_bf16" else {}
    given = asked(run__mixed_precision=computed, save__precision=stored, **rounding)
    proof = prove(*given)
    assert proof["difference"] <= proof["tolerance"] == 2e-5


@pytest.fixture(scope="module")
def right(asked: Callable[..., Given]) -> Given:
    """A run in bf16 with its file in fp16."""
    return asked(run__mixed_precision="bf16", save__precision="fp16")


@pytest.mark.parametrize(
    "damaged",
    [
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "model.diffusion_model.out.2.bias",
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight",
        "first_stage_model.decoder.conv_out.bias",
    ],
)
def test_one_corrupted_tensor_is_found(right: Given, damaged: str) -> None:
    question, config, _ = right
    file = question.file
    tensors = read_tensors(file, copy=True)
    whole = tensors[damaged].clone()
    tensors[damaged] += 0.01 * whole.abs().max() + (0.001 if not whole.any() else 0)
    write_tensors(file, tensors)
    with pytest.raises(TrainingFailed, match="not what was trained"):
        prove(question, config)
    tensors[damaged] = whole
    write_tensors(file, tensors)


def test_the_advice_names_a_checkpoint_where_there_is_one(right: Given) -> None:
    question, config, _ = right
    wrong = replace(question, expected=question.expected + 1.0)
    with pytest.raises(TrainingFailed) as alone:
        prove(wrong, config)
    assert "There is no checkpoint" in alone.value.line
    with pytest.raises(TrainingFailed) as kept:
        prove(wrong, config, 40)
    assert "run.resume=40" in kept.value.line


def test_a_model_that_did_not_learn_is_its_base(asked: Callable[..., Given]) -> None:
    given = asked(optim__learning_rate=0, run__mixed_precision="bf16")
    with pytest.raises(TrainingFailed, match="equals its base"):
        prove(*given)
    assert torch.isfinite(given[0].expected).all()


ADAPTER = {"method__kind": "lora", "method__rank": 4, "optim__learning_rate": 1e-2}


def test_an_adapter_is_proved_on_the_base_that_is_in_the_memory(
    asked: Callable[..., Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    question, config, checkpoint = asked(**ADAPTER)
    again = prove(replace(question, base=None), config, checkpoint)
    monkeypatch.setattr("dreambooth_core.trainer.proof.load_base", None)
    proof = prove(question, config, checkpoint)
    assert proof == again and proof["passed"] and proof["effect"] > 0


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr", "oft"])
def test_an_adapters_rounding_is_no_difference(asked: Callable[..., Given], kind: str) -> None:
    """However coarse: the answer is that of what the file holds."""
    rate = 1e-3 if kind == "oft" else 1e-2
    changes = {**ADAPTER, "method__kind": kind, "optim__learning_rate": rate}
    proof = prove(*asked(**changes, save__precision="bf16"))
    assert proof["passed"] and proof["difference"] < 1e-5 < proof["effect"]


def test_a_base_that_training_has_changed_is_read_again(
    asked: Callable[..., Given], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Lora.detach

    def damaged(self: Lora) -> bool:
        found = original(self)
        with torch.no_grad():
            next(self.parts.denoiser.parameters()).view(-1)[0] += 1
        return found

    monkeypatch.setattr(Lora, "detach", damaged)
    question, *_ = asked(**ADAPTER)
    assert question.base is None


@pytest.mark.parametrize("changes", [{"method__kind": "full"}, {"memory__stream": "1.0"}])
def test_a_base_that_is_not_as_it_was_is_read_again(
    asked: Callable[..., Given], changes: dict[str, str]
) -> None:
    question, *_ = asked(**{**ADAPTER, **changes})
    assert question.base is None
