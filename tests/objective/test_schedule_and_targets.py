"""Noise schedule, targets and weights, each against a computation of its own."""

from __future__ import annotations

import math

import pytest
import torch

from dreambooth_core.errors import UserError
from dreambooth_core.objective import diffusion
from dreambooth_core.objective.options import ObjectiveOptions


def test_stable_diffusions_schedule_equals_diffusers():
    from diffusers import DDPMScheduler

    for name in ("scaled_linear", "linear"):
        theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=name)
        assert torch.equal(diffusion.alphas_of({"beta_schedule": name}), theirs.alphas_cumprod)
    with pytest.raises(UserError, match="quadratic"):
        diffusion.alphas_of({"beta_schedule": "quadratic"})


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_start():
    before = diffusion.alphas_of({})
    after = diffusion.rescale_to_zero_terminal_snr(before)
    assert after[-1] == 0.0
    assert after[0].item() == pytest.approx(before[0].item(), rel=1e-6)
    assert (after[1:] < after[:-1]).all()
    # The same by hand for one step in the middle, from the paper's algorithm 1.
    root = [math.sqrt(float(before[i])) for i in (0, 500, 999)]
    middle = ((root[1] - root[2]) * root[0] / (root[0] - root[2])) ** 2
    assert float(after[500]) == pytest.approx(middle, rel=1e-5)
    assert diffusion.snr_of(after)[-1] == 0.0


def test_zero_terminal_snr_equals_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    ).alphas_cumprod
    ours = diffusion.rescale_to_zero_terminal_snr(diffusion.alphas_of({}))
    assert torch.allclose(ours, theirs, atol=2e-6)


def test_noise_and_targets_by_hand():
    clean, noise = torch.tensor([[[[2.0]]]]), torch.tensor([[[[0.5]]]])
    kept = torch.tensor([0.36])
    noisy = diffusion.add_noise(clean, noise, kept)
    assert noisy.item() == pytest.approx(0.6 * 2.0 + 0.8 * 0.5)
    assert diffusion.target("epsilon", clean, noise, kept).item() == 0.5
    assert diffusion.target("sample", clean, noise, kept).item() == 2.0
    v = diffusion.target("v_prediction", clean, noise, kept)
    assert v.item() == pytest.approx(0.6 * 0.5 - 0.8 * 2.0)


def test_targets_equal_diffusers():
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    clean, noise = torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)
    steps = torch.tensor([0, 10, 500, 999])
    kept = diffusion.alphas_of({})[steps]
    assert torch.allclose(
        diffusion.add_noise(clean, noise, kept), theirs.add_noise(clean, noise, steps), atol=1e-6
    )
    assert torch.allclose(
        diffusion.target("v_prediction", clean, noise, kept),
        theirs.get_velocity(clean, noise, steps),
        atol=1e-6,
    )


@pytest.mark.parametrize("weighting", ["min_snr", "debiased_estimation"])
def test_a_weighting_is_the_same_for_all_prediction_types(weighting):
    """One error of the picture, seen as epsilon, v and sample, costs the same in all three."""
    kept = diffusion.alphas_of({})[torch.tensor([20, 300, 700])].double()
    ratio = kept / (1 - kept)
    clean, noise = torch.randn(3, 4, 2, 2).double(), torch.randn(3, 4, 2, 2).double()
    noisy = diffusion.add_noise(clean, noise, kept)
    wrong = clean + 0.1 * torch.randn(3, 4, 2, 2).double()
    costs = []
    options = ObjectiveOptions(weighting=weighting, max_weight=1e9)
    for kind in diffusion.PREDICTION_TYPES:
        wrong_noise = (noisy - kept.sqrt().view(-1, 1, 1, 1) * wrong) / (1 - kept).sqrt().view(
            -1, 1, 1, 1
        )
        prediction = diffusion.target(kind, wrong, wrong_noise, kept)
        aim = diffusion.target(kind, clean, noise, kept)
        error = (prediction - aim).square().flatten(1).mean(1)
        costs.append(error * diffusion.weights(ratio, kind, options))
    assert torch.allclose(costs[0], costs[1], rtol=1e-6)
    assert torch.allclose(costs[0], costs[2], rtol=1e-6)


def test_min_snr_by_hand():
    ratio = torch.tensor([0.0, 0.5, 5.0, 20.0])
    assert diffusion.min_snr(ratio, "epsilon").tolist() == [1.0, 1.0, 1.0, 0.25]
    expected = [0.0, 0.5 / 1.5, 5 / 6, 5 / 21]
    assert diffusion.min_snr(ratio, "v_prediction").tolist() == pytest.approx(expected)
    assert diffusion.min_snr(ratio, "sample").tolist() == [0.0, 0.5, 5.0, 5.0]
    assert diffusion.min_snr(ratio, "epsilon", gamma=1.0)[2] == pytest.approx(0.2)


def test_debiased_and_v_equivalent_by_hand():
    ratio = torch.tensor([0.0, 0.04, 4.0])
    assert diffusion.debiased(ratio, "epsilon", cap=3.0).tolist() == pytest.approx([3.0, 3.0, 0.5])
    assert diffusion.debiased(ratio, "v_prediction", cap=9.0)[2] == pytest.approx(2.0 / 5.0)
    assert diffusion.debiased(ratio, "v_prediction").isfinite().all()
    assert diffusion.v_equivalent(ratio, "epsilon", cap=20.0).tolist() == pytest.approx(
        [20.0, 20.0, 1.25]
    )
    assert diffusion.v_equivalent(ratio, "v_prediction").tolist() == [1.0, 1.0, 1.0]
    assert diffusion.v_equivalent(ratio, "sample", cap=3.0).tolist() == pytest.approx([1, 1.04, 3])


def test_weightings_are_finite_everywhere_on_a_zero_terminal_schedule():
    ratio = diffusion.snr_of(diffusion.rescale_to_zero_terminal_snr(diffusion.alphas_of({})))
    for kind in diffusion.PREDICTION_TYPES:
        for name in ("none", "min_snr", "debiased_estimation", "v_equivalent"):
            found = diffusion.weights(ratio, kind, ObjectiveOptions(weighting=name))
            assert found.isfinite().all(), (kind, name)
    with pytest.raises(UserError, match="min_snt"):
        diffusion.weights(ratio, "epsilon", ObjectiveOptions(weighting="min_snt"))
