"""Resizing: the best adapter of the rank that was asked for, and what it lost."""

from __future__ import annotations

import math

import pytest
import torch

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.lowrank import Keep
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, LoraWeights
from dreambooth_core.formats.adapters.resize import resize
from tests.helpers.adapters import relative, weights_for

LINEAR, CONV = "unet.mid_block.attentions.0.proj_in", "unet.down_blocks.0.resnets.0.conv1"
BASE = {
    LINEAR: torch.randn(16, 12, generator=torch.Generator().manual_seed(1)),
    CONV: torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(2)),
}


def adapter(method: str = "lora", rank: int = 6) -> Adapter:
    modules = {name: weights_for(base, method, rank=rank) for name, base in BASE.items()}
    return Adapter(modules, {"ss_network_dim": str(rank), "ss_output_name": "x"}, "sd1")


def test_to_a_smaller_rank() -> None:
    before = adapter()
    after, report = resize(before, Keep(rank=2))
    wrong = right = 0.0
    for name, weights in after.modules.items():
        assert isinstance(weights, LoraWeights)
        assert (weights.rank, weights.alpha) == (2, 2.0)
        true = before.modules[name].delta(BASE[name])
        values = torch.linalg.svdvals(true.flatten(1))
        best = float(values[2:].norm() / values.norm())
        assert relative(weights.delta(BASE[name]), true) == pytest.approx(best, rel=1e-3)
        assert report.errors[name] == pytest.approx(best, rel=1e-3)
        wrong += float(values[2:].square().sum())
        right += float(values.square().sum())
    assert report.error == pytest.approx(math.sqrt(wrong / right), rel=1e-3)
    assert after.metadata == {"ss_output_name": "x"}


def test_to_the_same_rank_changes_nothing() -> None:
    before = adapter()
    after, report = resize(before, Keep(rank=6))
    for name, weights in after.modules.items():
        assert relative(weights.delta(), before.modules[name].delta()) < 1e-5
    assert report.error < 1e-5


@pytest.mark.parametrize("method", ["loha", "lokr", "diff"])
def test_relatives_become_lora(method: str) -> None:
    before = adapter(method, rank=2)
    after, _ = resize(before, Keep(energy=1.0))
    for name, weights in after.modules.items():
        assert isinstance(weights, LoraWeights)
        assert relative(weights.delta(BASE[name]), before.modules[name].delta(BASE[name])) < 1e-4
    conv = after.modules[CONV]
    assert isinstance(conv, LoraWeights)
    assert conv.down.shape[1:] == (8, 3, 3)


@pytest.mark.parametrize("method", ["dora", "oft"])
def test_what_depends_on_the_base(method: str) -> None:
    before = adapter(method, rank=2)
    with pytest.raises(UserError, match="--base"):
        resize(before, Keep(rank=4))
    after, _ = resize(before, Keep(rank=16), base=BASE)
    for name, weights in after.modules.items():
        expected = before.modules[name].delta(BASE[name])
        assert relative(weights.delta(), expected) < 1e-4


def test_vectors_and_biases_stay() -> None:
    before = adapter()
    before.modules["unet.conv_norm_out"] = DiffWeights(torch.ones(4), torch.ones(4), norm=True)
    lora = before.modules[LINEAR]
    assert isinstance(lora, LoraWeights)
    lora.bias = torch.ones(16)
    after, _ = resize(before, Keep(rank=1))
    assert after.modules["unet.conv_norm_out"] is before.modules["unet.conv_norm_out"]
    assert after.modules[LINEAR].bias_delta().tolist() == [1.0] * 16  # type: ignore[union-attr]


def test_energy_gives_each_module_its_own_rank() -> None:
    _, report = resize(adapter(), Keep(energy=0.8))
    assert all(1 <= rank < 6 for rank in report.ranks.values())
    assert report.error <= math.sqrt(0.2) + 1e-6
