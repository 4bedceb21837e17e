"""Fused backward, stochastic rounding, the fp16 scaler, and EMA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dreambooth_core.errors import UserError
from dreambooth_core.optim.build import ParamGroup
from dreambooth_core.optim.ema import Ema
from dreambooth_core.optim.options import EmaOptions, OptimOptions
from dreambooth_core.optim.stepper import Stepper, round_into
from dreambooth_core.optim.table import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
ONE_AT_A_TIME = [name for name, kind in OPTIMIZERS.items() if kind.per_parameter]


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 192), nn.SiLU(), nn.Linear(192, 24)).to(dtype)


def make(net: nn.Sequential, seed: int = 0, **options: object) -> Stepper:
    groups = [
        ParamGroup("a", list(net[0].parameters()), 1e-3),
        ParamGroup("b", list(net[2].parameters()), 5e-4),
    ]
    if OPTIMIZERS[str(options.get("optimizer", "adamw"))].finds_rate:
        groups = [ParamGroup("all", list(net.parameters()), 1.0)]
    return Stepper(OptimOptions(**options), groups, total_steps=20, seed=seed)  # type: ignore[arg-type]


def train(net: nn.Module, steps: Stepper, first: int, last: int) -> None:
    for step in range(first, last):
        data = torch.randn(8, 24, generator=torch.Generator().manual_seed(step))
        steps.begin(step)
        (net(data.to(next(net.parameters()).dtype)).float() - data).square().mean().backward()
        steps.finish()


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_fused_backward_gives_the_same_weights(name):
    plain, fused = model(), model()
    train(plain, make(plain, optimizer=name, max_grad_norm=0.0, lr_scheduler="linear"), 0, 4)
    steps = make(
        fused, optimizer=name, max_grad_norm=0.0, lr_scheduler="linear", fused_backward_pass=True
    )
    train(fused, steps, 0, 4)
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        assert torch.equal(a, b)


def test_fused_backward_frees_each_gradient_at_once():
    net = model()
    steps = make(net, max_grad_norm=0.0, fused_backward_pass=True)
    alive = []
    # Runs after the step's own hook on the first layer, the last in the backward pass.
    net[0].weight.register_post_accumulate_grad_hook(
        lambda _: alive.append([p.grad is not None for p in net.parameters()])
    )
    train(net, steps, 0, 1)
    assert alive
    assert not alive[0][2]
    assert not alive[0][3]
    assert all(p.grad is None for p in net.parameters())
    assert steps.finish() is None


def test_rounding_is_right_on_average_and_exact_where_it_can_be():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1000).bfloat16()
    target = torch.zeros_like(exact)
    round_into(target, exact.float(), generator)
    assert torch.equal(target, exact)
    value = 1.0 + 0.25 / 128  # a quarter of the way from 1 to the next bf16
    many = torch.empty(40_000, dtype=torch.bfloat16)
    round_into(many, torch.full((40_000,), value), generator)
    assert set(many.float().tolist()) == {1.0, 1.0 + 1 / 128}
    assert many.float().mean().item() == pytest.approx(value, abs=1e-4)
    round_into(many, torch.full((40_000,), -value), generator)
    assert many.float().mean().item() == pytest.approx(-value, abs=1e-4)
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0])
    rounded = torch.zeros(4, dtype=torch.bfloat16)
    round_into(rounded, odd, generator)
    assert torch.equal(rounded[:2].float(), odd[:2])
    assert rounded[2].isnan()
    assert rounded[3] == 0


def test_small_steps_survive_in_bf16_only_with_stochastic_rounding():
    def moved(stochastic: bool) -> float:
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        options = OptimOptions(weight_decay=0.0, max_grad_norm=0.0, stochastic_rounding=stochastic)
        steps = Stepper(options, [ParamGroup("w", [weight], 1e-4)], total_steps=50)
        for step in range(50):
            steps.begin(step)
            weight.grad = torch.ones_like(weight)
            steps.finish()
        return 1.0 - float(weight.float().mean().detach())

    assert moved(stochastic=False) == 0.0
    assert moved(stochastic=True) == pytest.approx(50 * 1e-4, rel=0.2)


@pytest.mark.parametrize("fused_backward", [False, True])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "lion", "prodigy"])
def test_rounded_runs_resume_to_the_bit(name, fused_backward):
    if fused_backward and not OPTIMIZERS[name].per_parameter:
        pytest.skip("refused by name")
    options = {
        "optimizer": name,
        "stochastic_rounding": True,
        "fused_backward_pass": fused_backward,
        "max_grad_norm": 0.0,
    }
    whole, parts = model(torch.bfloat16), model(torch.bfloat16)
    train(whole, make(whole, **options), 0, 6)
    before = make(parts, **options)
    train(parts, before, 0, 3)
    resumed = model(torch.bfloat16)
    resumed.load_state_dict(parts.state_dict())
    after = make(resumed, **options)
    after.load_state_dict(before.state_dict())
    train(resumed, after, 3, 6)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b)
    # States were made in fp32 and stay so.
    sizes = {v.dtype for v in before.optimizer.state[parts[0].bias].values() if torch.is_tensor(v)}
    assert torch.bfloat16 not in sizes


def test_rounding_depends_on_the_seed():
    one, two = model(torch.bfloat16), model(torch.bfloat16)
    train(one, make(one, stochastic_rounding=True, seed=1), 0, 3)
    train(two, make(two, stochastic_rounding=True, seed=2), 0, 3)
    assert not torch.equal(one[0].weight, two[0].weight)


def test_clipping_and_the_scaler_reach_the_gradients():
    net, scaled = model(), model()
    data = torch.randn(4, 24)
    steps, other = make(net, max_grad_norm=1e-3), make(scaled, max_grad_norm=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    net(data).square().mean().backward()
    scaler.scale(scaled(data).square().mean()).backward()
    norm, scaled_norm = steps.finish(), other.finish(scaler)
    assert norm is not None
    assert scaled_norm is not None
    assert norm.item() == pytest.approx(scaled_norm.item(), rel=1e-5)
    assert norm.item() > 1e-3
    for a, b in zip(net.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_the_scaler_skips_a_step_with_infinite_gradients():
    net = model()
    steps = make(net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = net[0].weight.detach().clone()
    scaler.scale(net(torch.full((1, 24), float("inf"))).sum()).backward()
    steps.finish(scaler)
    assert torch.equal(before, net[0].weight)
    assert scaler.get_scale() == 512.0


def averaged(p: nn.Parameter, **options: object) -> Ema:
    return Ema({"w": p}, EmaOptions(enabled=True, **options))  # type: ignore[arg-type]


def test_ema_by_hand():
    p = nn.Parameter(torch.tensor([0.0]))
    ema = averaged(p, decay=0.9, warmup=False)
    with torch.no_grad():
        p.fill_(1.0)
    ema.update(1)
    ema.update(2)
    assert ema.averages["w"].item() == pytest.approx(1 - 0.9**2)


def test_ema_warmup_and_rare_updates():
    p = nn.Parameter(torch.tensor([0.0]))
    ema = averaged(p, decay=0.999)
    assert ema.decay(1) == pytest.approx(2 / 11)
    assert ema.decay(100_000) == 0.999
    rare = averaged(p, decay=0.9, warmup=False, every=3)
    with torch.no_grad():
        p.fill_(1.0)
    rare.update(1)
    rare.update(2)
    assert rare.averages["w"].item() == 0.0
    rare.update(3)
    assert rare.averages["w"].item() == pytest.approx(1 - 0.9**3)


def test_ema_is_fp32_and_swaps_exactly():
    p = nn.Parameter(torch.randn(8).bfloat16())
    ema = averaged(p, decay=0.5, on_cpu=True)
    assert ema.averages["w"].dtype == torch.float32
    before = p.detach().clone()
    with torch.no_grad():
        p.add_(1.0)
    ema.update(1)
    live = p.detach().clone()
    with ema.applied():
        assert torch.equal(p, ema.averages["w"].bfloat16())
        assert not torch.equal(p, live)
        assert not torch.equal(p, before)
    assert torch.equal(p, live)


def test_ema_state_round_trips_and_refuses_others():
    p = nn.Parameter(torch.randn(8))
    ema, other = averaged(p), averaged(p)
    with torch.no_grad():
        p.add_(1.0)
    ema.update(1)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.averages["w"], ema.averages["w"])
    with pytest.raises(UserError, match="other weights"):
        other.load_state_dict({"v": p.detach()})
    with pytest.raises(UserError, match="other weights"):
        other.load_state_dict({"w": torch.zeros(3)})
