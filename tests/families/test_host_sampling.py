"""Images as the hosts make them: noise levels, times and samplers, computed directly. That they are
the hosts' images is seen in the real hosts, in ``tests/hosts``."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.families import reduced_base
from torch import Tensor

from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_sampling import SCHEDULES, Levels, Like
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.objective.diffusion import alphas_of

ALPHAS = alphas_of({})
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
LEVELS = Levels(ALPHAS)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Components:
    folder = tmp_path_factory.mktemp("bases") / "sd1"
    return load_base(BaseOptions(model=str(reduced_base("sd1", folder, slim=True))))


def test_levels_and_times_are_each_others_inverse() -> None:
    for time in (0.0, 1.0, 499.25, 998.5, 999.0):
        assert LEVELS.time(LEVELS.sigma(time), rounded=False) == pytest.approx(time, abs=2e-3)
    assert LEVELS.sigma(7.0) == pytest.approx(float(SIGMAS[7]))
    assert LEVELS.time(LEVELS.sigma(7.4), rounded=True) == 7
    assert LEVELS.time(1e6, rounded=False) == 999 and LEVELS.time(1e-6, rounded=False) == 0


@pytest.mark.parametrize(
    "schedule", sorted({name for names in SCHEDULES.values() for name in names} - {"automatic"})
)
def test_every_schedule_falls_to_nothing(schedule: str) -> None:
    levels = LEVELS.spaced(schedule, 10)
    assert len(levels) == 11
    assert levels == sorted(levels, reverse=True) and levels[-1] == 0
    assert levels[0] <= LEVELS.highest * (1 + 1e-6)


def test_schedules_by_their_formulas() -> None:
    near = pytest.approx
    assert LEVELS.spaced("uniform", 4)[:2] == near([float(SIGMAS[999]), float(SIGMAS[666])])
    assert LEVELS.spaced("simple", 4)[:3] == near([float(SIGMAS[t]) for t in (999, 749, 499)])
    assert LEVELS.spaced("ddim_uniform", 4)[:4] == near(
        [float(SIGMAS[t]) for t in (751, 501, 251, 1)]
    )
    root = (LEVELS.highest ** (1 / 7) + LEVELS.lowest ** (1 / 7)) / 2
    assert LEVELS.spaced("karras", 3)[1] == near(root**7, rel=1e-5)
    middle = (LEVELS.highest * LEVELS.lowest) ** 0.5
    assert LEVELS.spaced("exponential", 3)[1] == near(middle, rel=1e-5)


def ddim(predict: Any, latents: Tensor, times: list[int]) -> Tensor:
    """DDIM without noise, on latents of variance 1 (Song et al. 2020, equation 12)."""
    for time, after in pairwise(times):
        noise = predict(latents, time)
        clean = (latents - (1 - ALPHAS[time]).sqrt() * noise) / ALPHAS[time].sqrt()
        latents = ALPHAS[after].sqrt() * clean + (1 - ALPHAS[after]).sqrt() * noise
    return latents


def test_a1111s_ddim_is_ddim_to_its_last_time(parts: Components) -> None:
    like = Like("a1111")
    size = (64, 64)
    told = like.denoise(parts, ["a cat"], [3], negative="", guidance=1.0, steps=4, size=size)
    conditioning = parts.family.encode(parts, ["a cat"])

    @torch.no_grad()
    def predict(latents: Tensor, time: int) -> Tensor:
        made: Tensor = parts.family.predict(parts, latents, torch.tensor([time]), conditioning, [])
        return made

    expected = ddim(predict, like.noise(parts, [3], size), [751, 501, 251, 1])
    torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-4)


def test_noise_is_each_seeds_own(parts: Components) -> None:
    both = Like("comfyui").noise(parts, [1, 2], (64, 32))
    assert both.shape == (2, 4, 8, 4)
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(both[1], torch.randn(4, 8, 4, generator=generator))


def test_guidance_is_between_both_answers(parts: Components) -> None:
    def made(guidance: float, negative: str) -> Tensor:
        return Like("comfyui", "dpm++").denoise(
            parts, ["a cat"], [3], negative=negative, guidance=guidance, steps=2, size=(64, 64)
        )

    alone = made(1.0, "a dog")
    torch.testing.assert_close(made(5.0, "a cat"), alone, rtol=1e-4, atol=1e-4)
    assert not torch.equal(made(5.0, "a dog"), alone)


def test_it_stops_within_a_step(parts: Components) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return True

    settings = SamplingSettings(steps=50, width=64, height=64, like=Like("a1111", "euler"))
    with pytest.raises(Stopped):
        generate(parts, ["a"], [0], settings, should_stop=stop)
    assert len(asked) == 1


def test_what_a_host_has_not(parts: Components) -> None:
    with pytest.raises(UserError, match="unipc of the hosts is not known"):
        Like("a1111", "unipc")
    with pytest.raises(UserError, match="a1111 has no schedule 'simple'"):
        Like("a1111", "euler", "simple")
    with pytest.raises(UserError, match="only images of Stable Diffusion"):
        Like("comfyui").check(load_base(BaseOptions(model="pocket-flow"), weights=False))
