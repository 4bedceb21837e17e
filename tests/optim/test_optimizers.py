"""Every optimizer learns, and goes on after saving and loading as if nothing had happened."""

from __future__ import annotations

import copy
import io
import sys

import pytest
import torch
from torch import nn

from dreambooth_core.errors import UserError
from dreambooth_core.optim.build import ParamGroup, build_optimizer
from dreambooth_core.optim.options import OptimOptions
from dreambooth_core.optim.stepper import Stepper
from dreambooth_core.optim.table import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Weights above and below the size from which bitsandbytes uses 8 bits."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(24, 192), nn.SiLU(), nn.Linear(192, 24), nn.LayerNorm(24))
    nn.init.normal_(layers[3].bias)
    return layers.to(dtype)


def rate(name: str) -> float:
    return 1.0 if OPTIMIZERS[name].finds_rate else 1e-3


def options(name: str, **more: object) -> OptimOptions:
    return OptimOptions(optimizer=name, **more)  # type: ignore[arg-type]


def stepper(net: nn.Module, name: str, *, total: int = 40, **more: object) -> Stepper:
    require(name)
    groups = [ParamGroup("net", list(net.parameters()), rate(name))]
    return Stepper(options(name, **more), groups, total_steps=total, seed=3)


def require(name: str) -> None:
    # D-Adaptation is an extra that not every environment has.
    if OPTIMIZERS[name].package == "dadaptation":
        pytest.importorskip("dadaptation")


def train(net: nn.Module, steps: Stepper, first: int, last: int) -> list[float]:
    """Steps ``first`` to ``last``, each with data of its own; returns the losses."""
    losses = []
    for step in range(first, last):
        data = torch.randn(16, 24, generator=torch.Generator().manual_seed(step))
        data = data.to(next(net.parameters()).dtype)
        steps.begin(step)
        loss = (net(data) - data.flip(1)).float().square().mean()
        loss.backward()
        steps.finish()
        losses.append(float(loss.detach()))
    return losses


def round_trip(state: object) -> object:
    """As a checkpoint does it: written, and read with nothing but tensors and plain values."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns(name):
    net = model()
    steps = stepper(net, name)
    losses = train(net, steps, 0, 40)
    assert losses[-1] < losses[0]
    assert all(p.isfinite().all() for p in net.parameters())
    # Prodigy and D-Adaptation start from a tiny rate; the others must have got somewhere.
    if not OPTIMIZERS[name].finds_rate and name != "sgd_schedulefree" and name != "sgd":
        assert losses[-1] < 0.97 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_resumed_equals_uninterrupted_to_the_bit(name, schedule):
    if OPTIMIZERS[name].averages and schedule != "constant":
        pytest.skip("refused by name")
    whole = model()
    uninterrupted = stepper(whole, name, lr_scheduler=schedule)
    train(whole, uninterrupted, 0, 8)

    first = model()
    before = stepper(first, name, lr_scheduler=schedule)
    train(first, before, 0, 4)
    weights = round_trip(first.state_dict())
    state = round_trip(before.state_dict())

    second = model()
    with torch.no_grad():
        for p in second.parameters():
            p.zero_()
    after = stepper(second, name, lr_scheduler=schedule)
    second.load_state_dict(weights)  # type: ignore[arg-type]
    after.load_state_dict(state)  # type: ignore[arg-type]
    after.begin(3)
    same(after.state_dict(), state)
    train(second, after, 4, 8)
    for a, b in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    same(after.state_dict(), uninterrupted.state_dict())


def same(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert isinstance(b, torch.Tensor)
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert isinstance(b, dict)
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert isinstance(b, (list, tuple))
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_size_formula_equals_the_real_states(name):
    net = model()
    steps = stepper(net, name)
    train(net, steps, 0, 2)
    real = expected = 0
    for p in net.parameters():
        state = steps.optimizer.state[p]
        real += sum(
            v.numel() * v.element_size()
            for k, v in state.items()
            if isinstance(v, torch.Tensor) and v.dim() > 0 and not k.startswith("qmap")
        )
        expected += OPTIMIZERS[name].state_bytes(p.shape, 4)
    assert real == expected


def test_groups_have_their_own_learning_rates():
    net = model()
    groups = [
        ParamGroup("unet", list(net[0].parameters()), 1e-2),
        ParamGroup("text_encoder", list(net[2].parameters()), 1e-3, weight_decay=0.0),
    ]
    steps = Stepper(options("adamw", lr_scheduler="linear"), groups, total_steps=10)
    steps.begin(5)
    assert steps.learning_rates == pytest.approx({"unet": 5e-3, "text_encoder": 5e-4})
    assert [g["weight_decay"] for g in steps.optimizer.param_groups] == [0.01, 0.0]
    frozen = copy.deepcopy(net[3].state_dict())
    train(net, steps, 0, 1)
    assert all(torch.equal(net[3].state_dict()[k], v) for k, v in frozen.items())


def test_adamw_step_by_hand_and_fused():
    p = nn.Parameter(torch.tensor([1.0, -2.0]))
    p.grad = torch.tensor([0.5, 0.25])
    optimizer = build_optimizer(OptimOptions(), [ParamGroup("x", [p], 0.1)])
    assert optimizer.defaults["fused"] is True
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    optimizer.step()
    # The first Adam step is the sign of the gradient; the decay is decoupled.
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * 0.01) - 0.1
    assert torch.allclose(p, expected, atol=1e-6)


def test_hyperparameters_reach_the_optimizer():
    p = nn.Parameter(torch.ones(2))
    given = OptimOptions(beta1=0.8, beta2=0.95, weight_decay=0.2, epsilon=1e-5)
    group = build_optimizer(given, [ParamGroup("x", [p], 0.1)]).param_groups[0]
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.8, 0.95), 0.2, 1e-5)
    lion = build_optimizer(options("lion"), [ParamGroup("x", [p], 0.1)]).param_groups[0]
    assert lion["betas"] == (0.9, 0.99)
    prodigy = options("prodigy", optimizer_args={"d_coef": "2", "safeguard_warmup": "false"})
    group = build_optimizer(prodigy, [ParamGroup("x", [p], 1.0)]).param_groups[0]
    assert group["d_coef"] == 2
    assert group["safeguard_warmup"] is False
    sgd = build_optimizer(options("sgd", beta1=0.5), [ParamGroup("x", [p], 0.1)]).param_groups[0]
    assert sgd["momentum"] == 0.5


def test_wrong_arguments_are_named():
    group = [ParamGroup("x", [nn.Parameter(torch.ones(2))], 0.1)]
    with pytest.raises(UserError, match=r"no argument 'd_coeff'.*Did you mean d_coef"):
        build_optimizer(options("prodigy", optimizer_args={"d_coeff": "2"}), group)
    with pytest.raises(UserError, match="no argument 'lr'"):
        build_optimizer(options("adamw", optimizer_args={"lr": "2"}), group)
    with pytest.raises(UserError, match="lion has no epsilon"):
        build_optimizer(options("lion", epsilon=1e-8), group)
    with pytest.raises(UserError, match="sgd has no beta2"):
        build_optimizer(options("sgd", beta2=0.9), group)
    with pytest.raises(UserError, match="refuses its arguments"):
        build_optimizer(options("prodigy", optimizer_args={"d0": "-1"}), group)
    with pytest.raises(UserError, match=r"'adamv' is not known. Did you mean adam"):
        build_optimizer(options("adamv"), group)


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if OPTIMIZERS[n].package != "torch"])
def test_a_missing_library_is_named(name, monkeypatch):
    package = OPTIMIZERS[name].package
    for module in [package, "bitsandbytes.optim", "transformers.optimization"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"pip install {package}"):
        build_optimizer(options(name), [ParamGroup("x", [nn.Parameter(torch.ones(2))], 0.1)])


def test_a_changed_learning_rate_holds_after_loading():
    net = model()
    steps = stepper(net, "adamw")
    train(net, steps, 0, 2)
    other = Stepper(
        OptimOptions(weight_decay=0.5),
        [ParamGroup("net", list(net.parameters()), 7e-3)],
        total_steps=9,
    )
    other.load_state_dict(steps.state_dict())
    other.begin(2)
    assert other.learning_rates == {"net": 7e-3}
    assert other.optimizer.param_groups[0]["weight_decay"] == 0.5


def test_a_state_of_other_parts_is_refused():
    net = model()
    steps = stepper(net, "adamw")
    train(net, steps, 0, 1)
    other = stepper(model()[0], "adamw")
    with pytest.raises(UserError, match="does not fit"):
        other.load_state_dict(steps.state_dict())


def test_prodigy_reports_the_rate_it_found():
    net = model()
    steps = stepper(net, "prodigy")
    train(net, steps, 0, 30)
    found = steps.learning_rates["net"]
    assert 1e-6 < found < 1.0
    assert found == steps.optimizer.param_groups[0]["d"]


def test_schedule_free_weights_are_swapped_and_come_back_exactly():
    net = model()
    steps = stepper(net, "adamw_schedulefree")
    train(net, steps, 0, 5)
    before = [p.detach().clone() for p in net.parameters()]
    with steps.evaluation():
        inside = [p.detach().clone() for p in net.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, inside, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    train(net, steps, 5, 6)


def test_schedule_free_does_its_own_warmup():
    steps = stepper(model(), "adamw_schedulefree", lr_warmup_steps=7)
    assert steps.optimizer.param_groups[0]["warmup_steps"] == 7
    steps.begin(0)
    assert steps.learning_rates == {"net": 1e-3}
