"""Every family with every method: trains, changes what it should, is saved, and proves itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.families import KINDS
from helpers.runs import config_for, train
from torch import Tensor

from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import read_receipt
from dreambooth_core.methods.table import METHODS
from dreambooth_core.trainer.train import Training

BaseOf = Callable[[str], Path]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The training of the run, and all its weights before the first step and after the last, with
    what their parameters are called: afterwards adapters come off."""
    seen: dict[str, Any] = {}
    original = Training.train

    def watch(training: Training) -> None:
        seen["training"] = training
        seen["before"] = weights(training)
        original(training)
        seen["after"] = weights(training)
        seen["names"] = {id(p): name for name, p in parameters(training)}

    monkeypatch.setattr(Training, "train", watch)
    return seen


def parameters(training: Training) -> Iterator[tuple[str, Tensor]]:
    for component, model in {**training.parts.models, "vae": training.parts.vae}.items():
        for name, parameter in model.named_parameters():
            yield f"{component}.{name}", parameter


def weights(training: Training) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parameters(training)}


TOLD_BY_OTHERS = set(KINDS) - {"sd1", "sdxl"}
"""What a method finds in these is what it finds in SD1 and SDXL: here they are tried with two
methods, with one more each in test_pairs, with all by ``--long``."""

PAIRS = [
    pytest.param(kind, method, marks=[pytest.mark.long] if told else [])
    for kind in KINDS
    for method in METHODS
    for told in [kind in TOLD_BY_OTHERS and method not in ("lora", "full")]
]


@pytest.mark.parametrize(("kind", "method"), PAIRS)
def test_trains_what_it_should_and_nothing_else(
    base_of: BaseOf, pictures: Path, tmp_path: Path, watched: dict[str, Any], kind: str, method: str
) -> None:
    changes = {"method__kind": method, "method__train_text_encoder": "true", "run__steps": 2}
    folder = train(config_for(base_of(kind), pictures, tmp_path, **changes), proven=True)
    training: Training = watched["training"]
    trained = {id(p) for p in training.stepper.parameters}
    names, after = watched["names"], watched["after"]
    moved = {names[each] for each in trained if each in names}
    for name, tensor in watched["before"].items():
        if name not in moved:
            assert torch.equal(tensor, after[name]), name
    for group in training.trained.trainables:
        theirs = [names[id(p)] for p in group.parameters.values() if id(p) in names]
        assert any(not torch.equal(after[name], watched["before"][name]) for name in theirs), (
            group.component
        )
    assert read_receipt(folder)["proof"]["passed"]
    texts = len(training.parts.text_encoders)
    expected = {"textual_inversion": texts, "pivotal": 1 + 2 * texts}.get(method, 1 + texts)
    assert len(training.trained.trainables) == expected
    file = folder.path / read_receipt(folder)["result"]["file"]
    assert all(t.isfinite().all() for t in read_tensors(file).values() if t.is_floating_point())
