"""Fused layers and their parts: the same change, both ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreambooth_core.errors import Unsupported
from dreambooth_core.formats.adapters.fusing import join, outputs_of, rows, split, swap_halves
from dreambooth_core.formats.adapters.model import (
    DiffWeights,
    LokrWeights,
    LoraWeights,
    OftWeights,
    Weights,
)
from tests.helpers.adapters import relative, weights_for

SIZES = (12, 4, 4)
METHODS = ("lora", "dora", "loha", "lokr", "diff")


def base(seed: int = 0) -> Tensor:
    return torch.randn(sum(SIZES), 12, generator=torch.Generator().manual_seed(seed))


def parts_of(weight: Tensor, method: str) -> list[Weights]:
    return [
        weights_for(part, method, seed=n, rank=n + 2) for n, part in enumerate(weight.split(SIZES))
    ]


@pytest.mark.parametrize("method", METHODS)
def test_a_fused_layer_is_cut_exactly(method: str) -> None:
    weight = base()
    fused = weights_for(weight, method)
    assert outputs_of(fused) == 20
    deltas = [
        part.delta(own) for part, own in zip(split(fused, SIZES), weight.split(SIZES), strict=True)
    ]
    assert relative(torch.cat(deltas), fused.delta(weight)) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_parts_are_joined_exactly_and_come_back(method: str) -> None:
    weight = base()
    parts = parts_of(weight, method)
    fused = join(parts, SIZES)
    own = weight.split(SIZES)
    wanted = torch.cat([part.delta(w) for part, w in zip(parts, own, strict=True)])
    assert relative(fused.delta(weight), wanted) < 1e-5
    back = split(fused, SIZES)
    if method in ("lora", "dora"):
        assert [part.rank for part in back] == [2, 3, 4]
    for part, again, w in zip(parts, back, own, strict=True):
        assert relative(again.delta(w), part.delta(w)) < 1e-5


def test_parts_that_share_their_inputs_keep_the_rank() -> None:
    fused = weights_for(base(), "lora", rank=4)
    again = join(split(fused, SIZES), SIZES)
    assert again.rank == 4
    assert relative(again.delta(), fused.delta()) < 1e-6


def test_a_part_that_is_not_changed_stays_so() -> None:
    parts: list[Weights | None] = [None, *parts_of(base(), "lora")[1:]]
    delta = join(parts, SIZES).delta()
    assert not delta[:12].any()
    assert delta[12:].any()


def test_biases_go_along() -> None:
    part = weights_for(base()[:4], "lora")
    assert isinstance(part, LoraWeights)
    part.bias = torch.arange(4.0)
    fused = join([None, part, None], SIZES)
    shift = split(fused, SIZES)[1].bias_delta()
    assert shift is not None
    assert torch.equal(shift, torch.arange(4.0))


def test_lokr_of_rows_that_do_not_fit_its_factors_becomes_lora() -> None:
    fused = LokrWeights(w1=torch.randn(2, 2), w2=torch.randn(10, 6))
    made = split(fused, SIZES)
    assert isinstance(made[0], LoraWeights)
    assert relative(torch.cat([part.delta() for part in made]), fused.delta()) < 1e-5


def test_rotations() -> None:
    fused = OftWeights(torch.randn(5, 4, 4) * 0.1)
    weight = base()
    deltas = [p.delta(w) for p, w in zip(split(fused, SIZES), weight.split(SIZES), strict=True)]
    assert relative(torch.cat(deltas), fused.delta(weight)) < 1e-5
    again = join(split(OftWeights(torch.randn(6, 4, 4)), (8, 8, 8)), (8, 8, 8))
    assert isinstance(again, OftWeights)
    inputs = OftWeights(torch.randn(3, 4, 4) * 0.1, side="in")
    parts = split(inputs, (0, 0, 0))
    deltas = [p.delta(w) for p, w in zip(parts, weight.split(SIZES), strict=True)]
    assert relative(torch.cat(deltas), inputs.delta(weight)) < 1e-5
    with pytest.raises(Unsupported, match="mixes the outputs"):
        split(OftWeights(torch.randn(2, 10, 10)), SIZES)
    with pytest.raises(Unsupported, match="not a rotation of the fused one"):
        join([fused, None, None], SIZES)


def test_what_is_not_exact_is_refused() -> None:
    one = weights_for(base()[:12], "dora")
    with pytest.raises(Unsupported, match="only partly DoRA"):
        join([one, None, None], SIZES)
    with pytest.raises(Unsupported, match="different methods"):
        join([weights_for(base()[:12], "diff"), weights_for(base()[:4], "lora"), None], SIZES)
    fused = weights_for(base(), "lora")
    assert isinstance(fused, LoraWeights)
    fused.dora_scale = torch.ones(1, 12)
    with pytest.raises(Unsupported, match="magnitude per input"):
        split(fused, SIZES)


@pytest.mark.parametrize("method", ["lora", "loha", "diff"])
def test_halves_are_turned_round(method: str) -> None:
    weights = weights_for(base(), method)
    delta = weights.delta()
    assert relative(swap_halves(weights).delta(), torch.cat([delta[10:], delta[:10]])) < 1e-6
    assert relative(swap_halves(swap_halves(weights)).delta(), delta) < 1e-6


def test_zero_rows_keep_a_rank() -> None:
    weights = weights_for(base(), "lora")
    assert isinstance(weights, LoraWeights)
    weights.up[:12] = 0
    assert rows(weights, [slice(0, 12)]).rank >= 1
    assert isinstance(rows(DiffWeights(torch.ones(4, 2)), [slice(0, 2)]), DiffWeights)
