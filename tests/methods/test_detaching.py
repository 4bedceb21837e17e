"""What was trained comes off again, and the base is what it was, for the proof and the next run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.methods.base import method_for
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.methods.table import METHODS


def state(parts: Components) -> dict[str, Tensor]:
    models = {**parts.models, "vae": parts.vae}
    return {
        f"{component}.{name}": tensor.clone()
        for component, model in models.items()
        for name, tensor in model.state_dict().items()
    }


@pytest.mark.parametrize("kind", [kind for kind in METHODS if METHODS[kind].is_adapter])
def test_an_adapter_leaves_no_trace(base: Path, kind: str) -> None:
    parts = load_base(BaseOptions(model=str(base)))
    before = state(parts)
    options = MethodOptions(kind=kind, rank=4, train_text_encoder=True)
    if METHODS[kind].learns_token:
        options.placeholder_token = "sks"
    method = method_for(options, parts)
    for group in method.attach(0):
        for parameter in group.parameters.values():
            torch.nn.init.ones_(parameter)
    if METHODS[kind].learns_token:  # the vocabulary has grown
        assert not method.detach()
        return
    assert set(state(parts)) != set(before)
    assert method.detach()
    after = state(parts)
    assert set(after) == set(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(hasattr(model, "peft_config") for model in parts.models.values())


def test_a_base_that_was_trained_itself_does_not_come_back(base: Path) -> None:
    method = method_for(MethodOptions(kind="full"), load_base(BaseOptions(model=str(base))))
    method.attach(0)
    assert not method.detach()
