"""Noise and timesteps: right distribution, and each drawn from the sample's own key."""

from __future__ import annotations

import math

import pytest
import torch

from dreambooth_core.errors import UserError
from dreambooth_core.objective import objective as noise
from dreambooth_core.objective.diffusion import Diffusion, alphas_of
from dreambooth_core.objective.objective import position
from dreambooth_core.objective.options import TIMESTEP_BIASES, ObjectiveOptions
from dreambooth_core.randomness import generator

SHAPE = torch.Size((4, 8, 8))


def test_offset_shifts_each_channel_by_one_number():
    base = noise.gaussian((4, 8, 8), generator("n", 1))
    shifted = noise.offset(base, 0.1, generator("o", 1))
    change = shifted - base
    per_channel = torch.randn((4, 1, 1), generator=generator("o", 1)) * 0.1
    assert torch.allclose(change, per_channel.expand(4, 8, 8), atol=1e-6)


def test_perturbation_adds_gaussian_noise():
    base = noise.gaussian((4, 8, 8), generator("n", 1))
    more = noise.perturbed(base, 0.1, generator("p", 1))
    expected = base + 0.1 * torch.randn((4, 8, 8), generator=generator("p", 1))
    assert torch.equal(more, expected)


def test_pyramid_has_unit_variance_and_coarse_structure():
    def blockiness(sample: torch.Tensor) -> float:
        return float(torch.nn.functional.avg_pool2d(sample[None], 8).std())

    plain, coarse = [], []
    for i in range(20):
        base = noise.gaussian((4, 32, 32), generator("n", i))
        made = noise.pyramid(base, 0.5, 10, generator("p", i))
        assert made.shape == base.shape
        assert float(made.std()) == pytest.approx(1.0, abs=1e-5)
        plain.append(blockiness(base))
        coarse.append(blockiness(made))
    assert sum(coarse) > 2 * sum(plain)


def test_pyramid_by_hand_with_one_level():
    base = noise.gaussian((2, 8, 8), generator("n", 3))
    made = noise.pyramid(base, 0.4, 1, generator("p", 3))
    own = generator("p", 3)
    factor = float(torch.rand((), generator=own)) * 2 + 2
    size = int(8 / factor)
    coarse = torch.randn((2, size, size), generator=own)
    stretched = torch.nn.functional.interpolate(coarse[None], (8, 8), mode="bilinear")[0]
    expected = base + 0.4 * stretched
    assert torch.allclose(made, expected / expected.std(), atol=1e-6)


def test_pyramid_of_the_smallest_picture():
    made = noise.pyramid(torch.randn(4, 1, 2), 0.9, 10, generator("p"))
    assert made.isfinite().all()


def timesteps(positions: list[float], options: ObjectiveOptions) -> list[int]:
    """Of a diffusion base with a thousand of them."""
    found: list[int] = (
        Diffusion(options, alphas_of({}), "epsilon").timesteps(positions, SHAPE).tolist()
    )
    return found


@pytest.mark.parametrize("bias", TIMESTEP_BIASES)
def test_every_bias_stays_inside_the_range_and_grows_or_falls(bias):
    options = ObjectiveOptions(timestep_bias=bias, min_timestep=100, max_timestep=199)
    inside = [u / 5000 for u in range(5000)]
    drawn = timesteps([*inside, math.nextafter(1.0, 0.0), 0.0], options)
    assert min(drawn) >= 100
    assert max(drawn) <= 199
    inner = drawn[:5000]
    assert inner == sorted(inner, reverse=bias in ("cubic", "mode"))


def test_uniform_covers_both_ends():
    options = ObjectiveOptions(min_timestep=3, max_timestep=5)
    drawn = timesteps([i / 300 for i in range(300)], options)
    assert [drawn.count(step) for step in (3, 4, 5)] == [100, 100, 100]


def test_earlier_and_later_favour_their_part():
    for bias, low, high in (("earlier", 0, 250), ("later", 750, 1000)):
        options = ObjectiveOptions(
            timestep_bias=bias, timestep_bias_multiplier=3.0, timestep_bias_portion=0.25
        )
        drawn = timesteps([u / 9000 for u in range(9000)], options)
        inside = sum(low <= t < high for t in drawn) / 9000
        assert inside == pytest.approx(3 * 0.25 / (3 * 0.25 + 0.75), abs=2e-3)


def test_a_multiplier_of_zero_leaves_the_part_out():
    for bias in ("earlier", "later"):
        options = ObjectiveOptions(timestep_bias=bias, timestep_bias_multiplier=0.0)
        drawn = [position(u / 1000, options) for u in range(1000)]
        assert all(p >= 0.25 if bias == "earlier" else p <= 0.75 for p in drawn)


def test_cubic_and_logit_normal_by_hand():
    assert position(0.5, ObjectiveOptions(timestep_bias="cubic")) == 0.875
    options = ObjectiveOptions(timestep_bias="logit_normal", logit_mean=0.3, logit_std=0.8)
    assert position(0.5, options) == pytest.approx(1 / (1 + math.exp(-0.3)))
    one_sigma = position(0.8413447460685429, options)
    assert one_sigma == pytest.approx(1 / (1 + math.exp(-1.1)))


def test_an_empty_range_is_named():
    with pytest.raises(UserError, match="600 is above the last, 400"):
        timesteps([0.5], ObjectiveOptions(min_timestep=600, max_timestep=400))
