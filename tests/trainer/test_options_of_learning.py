"""What each option of ``objective`` and ``optim`` does in a real run, worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch
from helpers.families import reduced_base
from helpers.observed import Observed, Pass, observe
from helpers.runs import config_for
from torch import Tensor

from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.objective.objective import pyramid
from dreambooth_core.randomness import generator, uniform
from dreambooth_core.trainer.state import load_state

Once = Callable[..., Observed]
KEPT = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)


def error(one: Pass) -> Tensor:
    return one.prediction - one.sample.target


def kept(one: Pass) -> Tensor:
    return KEPT[one.sample.timesteps].float()


def ratio(one: Pass) -> Tensor:
    """The signal-to-noise ratio of each sample."""
    return kept(one) / (1 - kept(one))


def huber(one: Pass, c: Tensor) -> Tensor:
    c = c.view(-1, 1, 1, 1)
    return (2 * c * ((error(one).square() + c.square()).sqrt() - c)).flatten(1).mean(1)


def snr_threshold(one: Pass, c: float) -> Tensor:
    sigma = ratio(one).rsqrt()
    return (1 - c) / (1 + sigma).square() + c


def square(one: Pass) -> Tensor:
    return error(one).square().flatten(1).mean(1)


def smooth(one: Pass, c: float) -> Tensor:
    size = error(one).abs()
    small = size.square() / (2 * c)
    return torch.where(size < c, small, size - c / 2).flatten(1).mean(1)


LOSSES: list[tuple[dict[str, Any], Callable[[Pass], Tensor]]] = [
    ({"loss": "l1"}, lambda one: error(one).abs().flatten(1).mean(1)),
    ({"loss": "huber", "huber_c": 0.3}, lambda one: huber(one, torch.full((2,), 0.3))),
    ({"loss": "smooth_l1", "huber_c": 0.5}, lambda one: smooth(one, 0.5)),
    (
        {"loss": "huber", "huber_schedule": "exponential"},
        lambda one: huber(one, 0.1 ** (one.sample.timesteps / 1000)),
    ),
    (
        {"loss": "huber", "huber_schedule": "snr"},
        lambda one: huber(one, snr_threshold(one, 0.1)),
    ),
    (
        {"weighting": "min_snr", "min_snr_gamma": 0.01},
        lambda one: square(one) * (0.01 / ratio(one)).clamp(max=1),
    ),
    (
        {"weighting": "debiased_estimation", "max_weight": 1.5},
        lambda one: square(one) * ratio(one).rsqrt().clamp(max=1.5),
    ),
    (
        {"weighting": "v_equivalent"},
        lambda one: square(one) * ((ratio(one) + 1) / ratio(one)).clamp(max=20),
    ),
]


@pytest.mark.parametrize(
    ("options", "expected"), LOSSES, ids=lambda v: str(v) * isinstance(v, dict)
)
def test_losses_and_weights(
    options: dict[str, Any], expected: Callable[[Pass], Tensor], once: Once, plain: Observed
) -> None:
    seen = once(**{f"objective__{name}": value for name, value in options.items()})
    one = seen.passes[0]
    assert torch.equal(one.sample.noisy, plain.passes[0].sample.noisy)
    torch.testing.assert_close(one.losses, expected(one), rtol=1e-4, atol=1e-6)
    assert seen.told("loss") == pytest.approx([float(one.losses.mean())], rel=1e-5)
    assert seen.told("loss")[0] != pytest.approx(plain.told("loss")[0], rel=1e-3)


def test_offset_noise_shifts_each_channel(once: Once, plain: Observed) -> None:
    noise = once(objective__noise_offset=0.1).passes[0].sample.noise
    shift = noise - plain.passes[0].sample.noise
    torch.testing.assert_close(shift, shift[..., :1, :1].expand_as(shift), rtol=0, atol=1e-6)
    drawn = torch.randn(4, 1, 1, generator=generator("train", 0, 0, 0, "offset"))
    torch.testing.assert_close(shift[0, :, :1, :1], 0.1 * drawn, rtol=0, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 10])
def test_pyramid_noise_has_levels(levels: int, once: Once, plain: Observed) -> None:
    changes = {
        "objective__multires_noise_discount": 0.4,
        "objective__multires_noise_iterations": levels,
    }
    noise = once(**changes).passes[0].sample.noise
    expected = [
        pyramid(own, 0.4, count, generator("train", 0, 0, 0, "pyramid"))
        for own in plain.passes[0].sample.noise[:1]
        for count in (levels, 11 - levels)
    ]
    torch.testing.assert_close(noise[0], expected[0])
    assert not torch.allclose(noise[0], expected[1])


def test_input_perturbation_is_seen_and_not_asked_for(once: Once, plain: Observed) -> None:
    one, own = once(objective__ip_noise_gamma=0.2).passes[0], plain.passes[0]
    assert torch.equal(one.sample.target, own.sample.target)
    noise = (1 - kept(one)).sqrt().view(-1, 1, 1, 1)
    extra = (one.sample.noisy - own.sample.noisy) / noise
    drawn = torch.randn(4, 8, 8, generator=generator("train", 0, 0, 0, "perturbation"))
    torch.testing.assert_close(extra[0], 0.2 * drawn, rtol=1e-3, atol=1e-4)


def test_zero_terminal_snr_ends_in_pure_noise(tmp_path: Path, pictures: Path) -> None:
    base = reduced_base("sd2-v", tmp_path / "v")
    changes = {"objective__zero_terminal_snr": "true", "objective__min_timestep": 999}
    seen = observe(config_for(base, pictures, tmp_path / "runs", run__steps=1, **changes))
    one = seen.passes[0]
    assert seen.timesteps == [999, 999]
    torch.testing.assert_close(one.sample.noisy, one.sample.noise)
    torch.testing.assert_close(one.sample.target, -one.clean)


def earlier(u: float) -> float:
    mass = u * (3 * 0.2 + 0.8)
    return mass / 3 if mass < 0.6 else 0.2 + (mass - 0.6)


TIMESTEPS: list[tuple[dict[str, Any], Callable[[float], float]]] = [
    ({"min_timestep": 100, "max_timestep": 109}, lambda u: 100 + u * 10),
    (
        {
            "timestep_bias": "earlier",
            "timestep_bias_multiplier": 3,
            "timestep_bias_portion": 0.2,
        },
        lambda u: 1000 * earlier(u),
    ),
    (
        {"timestep_bias": "later", "timestep_bias_multiplier": 100, "timestep_bias_portion": 0.99},
        lambda u: 1000 * (u * 99.01 if u * 99.01 < 0.01 else 0.01 + (u * 99.01 - 0.01) / 100),
    ),
    ({"timestep_bias": "cubic"}, lambda u: 1000 * (1 - u**3)),
    (
        {"timestep_bias": "logit_normal", "logit_mean": 1, "logit_std": 0.5},
        lambda u: 1000 / (1 + math.exp(-(1 + 0.5 * NormalDist().inv_cdf(u)))),
    ),
]


@pytest.mark.parametrize(
    ("options", "expected"), TIMESTEPS, ids=lambda v: str(v) * isinstance(v, dict)
)
def test_timesteps(
    options: dict[str, Any], expected: Callable[[float], float], once: Once, plain: Observed
) -> None:
    seen = once(**{f"objective__{name}": value for name, value in options.items()})
    drawn = [uniform("train", 0, 0, number, "timestep") for number in (0, 2)]
    assert plain.timesteps[:2] == [int(1000 * u) for u in drawn]
    assert seen.timesteps == [int(expected(u)) for u in drawn]
    assert seen.timesteps != plain.timesteps[:2]


RATES: list[tuple[dict[str, Any], list[float]]] = [
    ({}, [1, 1, 1, 1]),
    ({"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 2}, [0, 0.5, 1, 1]),
    ({"lr_scheduler": "linear"}, [1, 0.75, 0.5, 0.25]),
    ({"lr_scheduler": "cosine", "lr_num_cycles": 1}, [1, 0.5, 0, 0.5]),
    ({"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 2}, [1, 0.5, 1, 0.5]),
    (
        {"lr_scheduler": "polynomial", "lr_power": 2, "final_learning_rate": 1e-4},
        [0.9 * (1 - i / 4) ** 2 + 0.1 for i in range(4)],
    ),
    ({"lr_scheduler": "piecewise_constant", "step_rules": "1:1,0.5:3,0.1"}, [1, 0.5, 0.5, 0.1]),
    ({"scale_lr": "true"}, [4, 4, 4, 4]),
]


@pytest.mark.parametrize(("options", "factors"), RATES, ids=lambda v: str(v) * isinstance(v, dict))
def test_learning_rates(options: dict[str, Any], factors: list[float], once: Once) -> None:
    """Of four steps, with two batches of two pictures each."""
    changes = {f"optim__{name}": value for name, value in options.items()}
    changes = {"optim__learning_rate": 1e-3, **changes}
    seen = once(run__steps=4, run__gradient_accumulation_steps=2, **changes)
    assert seen.told("lr") == pytest.approx([1e-3 * factor for factor in factors], abs=1e-12)


def test_text_encoders_have_a_rate_of_their_own(once: Once) -> None:
    changes = {"method__train_text_encoder": "true", "optim__text_encoder_lr": 0}
    seen = once(**changes)
    assert seen.training.stepper.learning_rates == {"unet": 1e-3, "text_encoder": 0.0}
    ups = {name: t for name, t in seen.result.items() if name.endswith("lora_up.weight")}
    moved = {name.split("_")[1] for name, tensor in ups.items() if tensor.any()}
    assert moved == {"unet"} and any(name.startswith("lora_te_") for name in ups)


def test_weight_decay_of_each_part(once: Once) -> None:
    """In AdamW's first step nothing but the decay moves a matrix without a gradient."""
    changes = {"method__train_text_encoder": "true", "optim__weight_decay": 10}
    same, own = once(**changes), once(**changes, optim__text_weight_decay=0)
    downs = [name for name in same.result if name.endswith("lora_down.weight")]
    for name in downs:
        decayed, other = same.result[name], own.result[name]
        factor = 1 - 1e-3 * 10 if name.startswith("lora_te_") else 1
        torch.testing.assert_close(decayed, factor * other)
    assert any(name.startswith("lora_te_") for name in downs)


def test_the_optimizer_gets_its_numbers(once: Once) -> None:
    options = {"beta1": 0.5, "beta2": 0.6, "epsilon": 1e-3, "optimizer_args": "{amsgrad: 'true'}"}
    seen = once(**{f"optim__{name}": value for name, value in options.items()})
    (group,) = seen.training.stepper.optimizer.param_groups
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.5, 0.6), 1e-3, True)


def test_sgd_goes_as_far_as_the_clipped_gradient(once: Once) -> None:
    changes = {"optimizer": "sgd", "learning_rate": 1, "weight_decay": 0, "max_grad_norm": 0.01}
    seen = once(**{f"optim__{name}": value for name, value in changes.items()})
    assert type(seen.training.stepper.optimizer) is torch.optim.SGD
    assert seen.told("gradient_norm")[0] > 0.01
    ups = [t for name, t in seen.result.items() if name.endswith("lora_up.weight")]
    assert float(torch.cat([t.flatten() for t in ups]).norm()) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"decay": 0.5, "warmup": "false"}, (0.25, 0.5)),
        ({"decay": 0.5, "warmup": "false", "every": 2}, (0.0, 0.75)),
        ({"decay": 0.5}, (9 / 11 * 3 / 12, 9 / 12)),
    ],
)
def test_the_average_is_saved_as_the_result(
    options: dict[str, Any], shares: tuple[float, float], once: Once
) -> None:
    """What begins at 0 is, after two steps, these shares of the first and the second."""
    changes = {f"optim__ema__{name}": value for name, value in options.items()}
    seen = once(
        run__steps=2,
        optim__ema__enabled="true",
        save__every_steps=1,
        save__at_end="true",
        save__layout="diffusers",
        **changes,
    )
    states = [load_state(path).weights for path in saved_steps(seen.folder.checkpoints).values()]
    first, second = states
    checked = 0
    for name, tensor in seen.result.items():
        if name.endswith("lora_B.weight"):
            raw = f"unet.{name.removeprefix('unet.').removesuffix('.weight')}.default.weight"
            expected = shares[0] * first[raw] + shares[1] * second[raw]
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-8)
            checked += 1
    assert checked > 5
