"""Rectified flow: timesteps, shifts, target, weights and loss, each to exact values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dreambooth_core.errors import UserError
from dreambooth_core.objective.diffusion import Diffusion, alphas_of
from dreambooth_core.objective.flow import MARGIN, Flow, weights
from dreambooth_core.objective.objective import position
from dreambooth_core.objective.options import FLOW_WEIGHTINGS, TIMESTEP_BIASES, ObjectiveOptions
from dreambooth_core.objective.shift import FlowDefaults, linear_mu, root_mu, shifted
from dreambooth_core.randomness import generator, uniform

SHAPE = torch.Size((2, 16, 8, 8))
KEYS: list[tuple[str | int, ...]] = [("train", 3, 5, i) for i in range(2)]


def make(defaults: FlowDefaults | None = None, **options: Any) -> Flow:
    return Flow(ObjectiveOptions(**options), defaults)


def test_the_sample_and_its_loss_by_hand():
    objective = make(weighting="sigma_squared")
    latents, prediction = torch.randn(SHAPE), torch.randn(SHAPE)
    sample = objective.draw(latents, KEYS)
    got = objective.losses(prediction, sample)
    assert sample.timesteps.dtype == torch.float32
    for i, key in enumerate(KEYS):
        s = uniform(*key, "timestep")
        noise = torch.randn(16, 8, 8, generator=generator(*key, "noise"))
        assert sample.timesteps[i].item() == pytest.approx(s)
        assert torch.allclose(sample.noisy[i], (1 - s) * latents[i] + s * noise, atol=1e-6)
        assert torch.equal(sample.target[i], noise - latents[i])
        expected = s**2 * float((prediction[i] - (noise - latents[i])).square().mean())
        assert got[i].item() == pytest.approx(expected, rel=1e-5)


def test_a_sample_depends_on_its_key_alone():
    objective = make(noise_offset=0.1, multires_noise_discount=0.3, ip_noise_gamma=0.1)
    latents = torch.randn(SHAPE)
    whole = objective.draw(latents, KEYS)
    for i in range(2):
        one = objective.draw(latents[i : i + 1], KEYS[i : i + 1])
        for name in ("noisy", "target", "timesteps", "noise", "weights", "thresholds"):
            assert torch.equal(getattr(one, name)[0], getattr(whole, name)[i]), name


def test_noise_options_do_in_flow_what_they_do_in_diffusion():
    latents = torch.zeros(SHAPE)
    options = ObjectiveOptions(noise_offset=0.1, multires_noise_discount=0.2, ip_noise_gamma=0.1)
    flow = Flow(options).draw(latents, KEYS, timesteps=torch.full((2,), 0.5))
    other = Diffusion(options, alphas_of({}), "epsilon").draw(latents, KEYS)
    assert torch.equal(flow.noise, other.noise)
    assert torch.equal(flow.target, flow.noise)
    shown = 2 * flow.noisy - flow.noise
    perturbation = torch.stack(
        [torch.randn(16, 8, 8, generator=generator(*key, "perturbation")) for key in KEYS]
    )
    assert torch.allclose(shown, 0.1 * perturbation, atol=1e-6)


def test_timesteps_of_logit_normal_and_mode_equal_diffusers():
    """The density of Esser et al. as diffusers draws it, from the same Gaussian and uniform."""
    from diffusers.training_utils import compute_density_for_timestep_sampling as density

    def drawn(scheme: str, **more: float) -> torch.Tensor:
        made = torch.Generator().manual_seed(1)
        found: torch.Tensor = density(scheme, 200, generator=made, **more)
        return found

    gauss = torch.randn(200, generator=torch.Generator().manual_seed(1))
    u = torch.special.ndtr(gauss.double()).tolist()
    ours = make(timestep_bias="logit_normal", logit_mean=0.3, logit_std=0.8)
    theirs = drawn("logit_normal", logit_mean=0.3, logit_std=0.8)
    assert torch.allclose(ours.timesteps(u, SHAPE), theirs, atol=1e-6)
    scaled = make(timestep_bias="sigmoid", sigmoid_scale=0.7)
    theirs = drawn("logit_normal", logit_mean=0.0, logit_std=0.7)
    assert torch.allclose(scaled.timesteps(u, SHAPE), theirs, atol=1e-6)
    u = torch.rand(200, generator=torch.Generator().manual_seed(1)).tolist()
    for scale in (-1.0, 0.5, 1.29, 1.75):
        theirs = drawn("mode", mode_scale=scale).clamp(MARGIN, 1 - MARGIN)
        ours = make(timestep_bias="mode", mode_scale=scale)
        assert torch.allclose(ours.timesteps(u, SHAPE), theirs, atol=1e-6), scale
    theirs = drawn("none").clamp(MARGIN, 1 - MARGIN)
    assert torch.allclose(make().timesteps(u, SHAPE), theirs, atol=1e-6)


def test_cosmap_has_the_density_of_its_paper():
    options = ObjectiveOptions(timestep_bias="cosmap")
    for u in (0.05, 0.3, 0.5, 0.9):
        t = position(u, options)
        assert t == pytest.approx(1 - 1 / (math.tan(math.pi / 2 * u) + 1))
        slope = (position(u + 1e-6, options) - position(u - 1e-6, options)) / 2e-6
        assert 1 / slope == pytest.approx(2 / (math.pi * (1 - 2 * t + 2 * t * t)), rel=1e-4)


def test_weights_equal_diffusers():
    from diffusers.training_utils import compute_loss_weighting_for_sd3 as theirs

    share = torch.tensor([0.05, 0.3, 0.5, 0.99])
    for name in ("none", "sigma_sqrt", "cosmap"):
        assert torch.allclose(weights(share, name, 1e6), theirs(name, sigmas=share)), name
    assert weights(share, "sigma_sqrt", 20.0).tolist() == pytest.approx(
        [20.0, 1 / 0.09, 4.0, 1 / 0.99**2]
    )
    # A comparison of clean latents, which is what SD3's script does by default.
    error = torch.randn(4, 3)
    clean = (share.view(4, 1) * error).square().mean(1)
    on_v = error.square().mean(1) * weights(share, "sigma_squared", 1.0)
    assert torch.allclose(clean, on_v)


def test_a_static_shift_is_that_of_diffusers_scheduler():
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = (torch.arange(1, 1001) / 1000).tolist()
    for objective in (
        make(shift_factor=3.0),
        make(shift="static", shift_factor=3.0),
        make(FlowDefaults(shift="static", factor=3.0)),
        make(FlowDefaults(factor=3.0), shift="static"),
    ):
        drawn = objective.timesteps(u, SHAPE)
        theirs = scheduler.sigmas.flip(0).clamp(max=1 - MARGIN)
        assert torch.allclose(drawn, theirs, atol=1e-6)
    family = FlowDefaults(shift="static", factor=3.0)
    plain = make(family, shift="none").timesteps(u, SHAPE)
    assert torch.allclose(plain, torch.tensor(u).clamp(max=1 - MARGIN))


def test_a_shift_by_resolution_is_that_of_fluxs_pipeline():
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    objective = make(FlowDefaults(resolution_mu=linear_mu()), shift="resolution")
    for height, width in ((32, 32), (128, 128), (96, 160)):
        mu = calculate_shift(height * width // 4)
        scheduler.set_timesteps(sigmas=[0.25, 0.5, 0.75], mu=mu)
        drawn = objective.timesteps([0.25, 0.5, 0.75], torch.Size((1, 16, height, width)))
        assert torch.allclose(drawn, scheduler.sigmas[:3], atol=1e-6)


def test_a_shift_by_the_root_of_the_size():
    assert root_mu(1024)(4096) == pytest.approx(math.log(2.0))
    family = FlowDefaults("logit_normal", 0.0, 1.5, "resolution", resolution_mu=root_mu(1024))
    drawn = make(family).timesteps([0.5, 0.8413447460685429], torch.Size((1, 16, 128, 128)))
    # Ideogram 4 draws from the sigmoid of N(mu, 1.5), which is the same.
    assert drawn.tolist() == pytest.approx([2 / 3, 1 / (1 + math.exp(-(math.log(2.0) + 1.5)))])


def test_auto_is_what_the_familys_makers_do_and_any_choice_goes_first():
    family = FlowDefaults(timesteps="logit_normal", mean=1.0, std=0.5, shift="static", factor=2.0)
    u = [0.5]
    at = 1 / (1 + math.exp(-1.0))
    assert make(family).timesteps(u, SHAPE).item() == pytest.approx(shifted(at, 2.0))
    chosen = make(family, timestep_bias="none", shift="none")
    assert chosen.timesteps(u, SHAPE).item() == 0.5
    mine = make(family, timestep_bias="logit_normal", shift="none")
    assert mine.timesteps(u, SHAPE).item() == 0.5


@pytest.mark.parametrize("bias", TIMESTEP_BIASES)
def test_every_bias_stays_inside_its_range_and_off_the_ends(bias):
    u = [0.0, *(i / 500 for i in range(500)), math.nextafter(1.0, 0.0)]
    drawn = make(timestep_bias=bias, shift_factor=5.0).timesteps(u, SHAPE)
    assert drawn.min() > 0.0
    assert drawn.max() < 1.0
    part = make(timestep_bias=bias, min_timestep=200, max_timestep=399).timesteps(u, SHAPE)
    assert part.min() >= 0.2
    assert part.max() <= 0.4 + 1e-7


def test_huber_thresholds_follow_the_share_of_noise():
    share = torch.tensor([0.25, 0.75])
    latents = torch.zeros(SHAPE)

    def thresholds(schedule: str) -> list[float]:
        objective = make(loss="huber", huber_schedule=schedule, huber_c=0.1)
        found: list[float] = objective.draw(latents, KEYS, timesteps=share).thresholds.tolist()
        return found

    assert thresholds("constant") == pytest.approx([0.1, 0.1])
    assert thresholds("exponential") == pytest.approx([0.1**0.25, 0.1**0.75])
    assert thresholds("snr") == pytest.approx([0.9 * (1 - s) ** 2 + 0.1 for s in (0.25, 0.75)])


def test_half_precision_latents_keep_an_exact_target():
    sample = make().draw(torch.randn(SHAPE, dtype=torch.bfloat16), KEYS)
    assert (sample.noisy.dtype, sample.target.dtype) == (torch.bfloat16, torch.float32)


def test_what_makes_no_sense_is_refused_by_name():
    for name in ("min_snr", "debiased_estimation", "v_equivalent"):
        with pytest.raises(UserError, match=f"'{name}' is not known for rectified-flow"):
            make(weighting=name)
    for name in FLOW_WEIGHTINGS[1:]:
        with pytest.raises(UserError, match=f"'{name}' is not known for diffusion"):
            Diffusion(ObjectiveOptions(weighting=name), alphas_of({}), "epsilon")
    with pytest.raises(UserError, match="shift is for rectified-flow"):
        Diffusion(ObjectiveOptions(shift="static"), alphas_of({}), "epsilon")
    with pytest.raises(UserError, match="ends in pure noise"):
        make(zero_terminal_snr=True)
    with pytest.raises(UserError, match="no rule for a shift by resolution"):
        make(shift="resolution")
    with pytest.raises(UserError, match="does nothing with the shift 'none'"):
        make(shift="none", shift_factor=3.0)
    with pytest.raises(UserError, match="600 is above the last, 400"):
        make(min_timestep=600, max_timestep=400)
