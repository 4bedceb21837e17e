"""Schedules against diffusers', rates and clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dreambooth_core.errors import UserError
from dreambooth_core.optim.options import SCHEDULES, OptimOptions, rates
from dreambooth_core.optim.schedules import Schedule, parse_rules
from dreambooth_core.optim.stepper import clip_gradients

TOTAL, RATE = 50, 3e-4


@pytest.mark.library_api
@pytest.mark.parametrize("warmup", [0, 7])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_equals_diffusers(name, warmup):
    from diffusers.optimization import get_scheduler

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=RATE)
    rules = "1:10,0.1:20,0.01"
    cycles, power = 3, 2.0
    theirs = get_scheduler(
        name,
        optimizer,
        step_rules=rules,
        num_warmup_steps=warmup,
        num_training_steps=TOTAL,
        num_cycles=cycles,
        power=power,
    )
    options = OptimOptions(
        lr_scheduler=name,
        lr_warmup_steps=warmup,
        lr_power=power,
        step_rules=rules,
        lr_num_cycles=cycles if name == "cosine_with_restarts" else None,
    )
    ours = Schedule(options, TOTAL)
    for step in range(TOTAL + 1):
        assert ours.factor(step, RATE) * RATE == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15
        )
        optimizer.step()
        theirs.step()


def test_cosine_cycles_equal_diffusers():
    from diffusers.optimization import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 5, TOTAL, num_cycles=2.5)
    ours = Schedule(
        OptimOptions(lr_scheduler="cosine", lr_num_cycles=2.5, lr_warmup_steps=5), TOTAL
    )
    for step in range(TOTAL):
        assert ours.factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_polynomial_ends_at_the_final_rate_for_every_group():
    options = OptimOptions(lr_scheduler="polynomial", final_learning_rate=1e-5)
    schedule = Schedule(options, 10)
    for rate in (1e-3, 5e-5):
        assert schedule.factor(10, rate) * rate == pytest.approx(1e-5)
        assert schedule.factor(99, rate) * rate == pytest.approx(1e-5)


def test_step_rules():
    assert parse_rules("1:10,0.1:20,0.01") == (((10, 1.0), (20, 0.1)), 0.01)
    assert parse_rules("0.5") == ((), 0.5)
    for wrong in ("", "1:10", "a:10,1", "1:x,1", "1:2:3,1"):
        with pytest.raises(UserError, match="step rules"):
            parse_rules(wrong)


def test_rates():
    assert rates(OptimOptions()).unet == 1e-4
    assert rates(OptimOptions(), full=True).text == 2e-6
    assert rates(OptimOptions(optimizer="prodigy")).embedding == 1.0
    given = OptimOptions(learning_rate=1e-3, text_encoder_lr=1e-5, scale_lr=True)
    scaled = rates(given, images=24)
    assert (scaled.unet, scaled.text) == pytest.approx((24e-3, 24e-5))
    assert rates(OptimOptions(learning_rate=0.0)).unet == 0.0


def test_clipping_by_hand():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))
    idle = nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert clip_gradients([a, b, idle], 0.0).item() == 5.0
    assert a.grad.tolist() == [3.0, 0.0]
    assert clip_gradients([a, b, idle], 1.0).item() == 5.0
    assert a.grad.tolist() == pytest.approx([0.6, 0.0], rel=1e-5)
    assert b.grad.tolist() == pytest.approx([0.8], rel=1e-5)
    assert clip_gradients([a, b], 2.0).item() == pytest.approx(1.0)
    assert b.grad.tolist() == pytest.approx([0.8], rel=1e-5)
    assert clip_gradients([idle], 1.0).item() == 0.0
