"""Losses, the two-part loss, and the whole objective."""

from __future__ import annotations

import math

import pytest
import torch

from dreambooth_core.errors import UserError
from dreambooth_core.objective.diffusion import Diffusion, alphas_of
from dreambooth_core.objective.objective import (
    combine,
    elementwise,
    huber_threshold,
    mean_per_sample,
)
from dreambooth_core.objective.options import ObjectiveOptions

SCHEDULE = alphas_of({})


def make(prediction_type: str = "epsilon", **options: object) -> Diffusion:
    return Diffusion(ObjectiveOptions(**options), SCHEDULE, prediction_type)  # type: ignore[arg-type]


def keys(n: int, start: int = 0) -> list[tuple[str | int, ...]]:
    return [("noise", 42, 7, start + i) for i in range(n)]


def test_elementwise_losses_by_hand():
    d = torch.tensor([[0.05, -3.0]])
    zero, c = torch.zeros(1, 2), torch.tensor([0.1])
    assert elementwise("l2", d, zero, c).tolist()[0] == pytest.approx([0.0025, 9.0])
    assert elementwise("l1", d, zero, c).tolist()[0] == pytest.approx([0.05, 3.0])
    huber = [2 * 0.1 * (math.sqrt(x * x + 0.01) - 0.1) for x in (0.05, 3.0)]
    assert elementwise("huber", d, zero, c).tolist()[0] == pytest.approx(huber, rel=1e-5)
    smooth = torch.nn.functional.smooth_l1_loss(d, zero, beta=0.1, reduction="none")
    assert torch.allclose(elementwise("smooth_l1", d, zero, c), smooth)


def test_huber_is_squared_for_small_errors_and_linear_for_large():
    c = torch.tensor([1.0])
    small = elementwise("huber", torch.tensor([[1e-2]]), torch.zeros(1, 1), c)
    assert small.item() == pytest.approx(1e-4, rel=1e-3)
    large = elementwise("huber", torch.tensor([[1e3]]), torch.zeros(1, 1), c)
    assert large.item() == pytest.approx(2e3, rel=2e-3)


def test_huber_thresholds_by_hand():
    t, kept = torch.tensor([0, 500]), torch.tensor([1.0, 0.2])
    assert huber_threshold(ObjectiveOptions(), t, kept, 1000).tolist() == pytest.approx([0.1] * 2)
    exponential = huber_threshold(ObjectiveOptions(huber_schedule="exponential"), t, kept, 1000)
    assert exponential.tolist() == pytest.approx([1.0, 0.1**0.5])
    by_snr = huber_threshold(ObjectiveOptions(huber_schedule="snr"), t, kept, 1000)
    assert by_snr.tolist() == pytest.approx([1.0, 0.9 / (1 + 2.0) ** 2 + 0.1])


def test_masked_mean_by_hand():
    each = torch.arange(8.0).reshape(1, 2, 2, 2)
    mask = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert mean_per_sample(each).item() == 3.5
    assert mean_per_sample(each, mask).item() == (0 + 4) / 2
    soft = mean_per_sample(each, 0.5 + 0.5 * mask).item()
    assert soft == pytest.approx((0 + 4 + 0.5 * (1 + 2 + 3 + 5 + 6 + 7)) / (2 + 3))
    assert mean_per_sample(each, torch.zeros_like(mask)).item() == 0.0


def test_a_mask_of_the_pictures_size_is_averaged_down():
    each = torch.randn(1, 4, 2, 2)
    big = torch.zeros(1, 1, 16, 16)
    big[..., :8, :4] = 1.0
    expected = mean_per_sample(each, torch.tensor([[[[0.5, 0.0], [0.0, 0.0]]]]))
    assert torch.allclose(mean_per_sample(each, big), expected)


def test_the_two_part_loss_by_hand():
    values = torch.tensor([1.0, 4.0, 3.0, 8.0, 5.0], requires_grad=True)
    is_class = torch.tensor([False, True, False, True, False])
    total, instance, prior = combine(values, is_class, 0.5, (3, 2))
    assert total.item() == pytest.approx(3.0 + 0.5 * 6.0)
    assert instance.item() == pytest.approx(3.0)
    assert prior.item() == pytest.approx(6.0)
    total.backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([1 / 3, 0.25, 1 / 3, 0.25, 1 / 3])


def test_one_kind_alone_gives_no_nan():
    total, _, prior = combine(torch.tensor([2.0, 4.0]), torch.tensor([False, False]), 1.0, (2, 0))
    assert (total.item(), prior.item()) == (3.0, 0.0)
    total, *_ = combine(torch.tensor([2.0, 4.0]), torch.tensor([True, True]), 2.0, (0, 2))
    assert total.item() == 6.0


def test_parts_of_a_batch_add_up_to_the_whole():
    values, is_class = torch.rand(7), torch.tensor([0, 1, 1, 0, 0, 0, 1]).bool()
    whole, *_ = combine(values, is_class, 0.7, (4, 3))
    pieces = [
        combine(values[s], is_class[s], 0.7, counts=(4, 3))[0]
        for s in (slice(0, 1), slice(1, 3), slice(3, 7))
    ]
    assert torch.stack(pieces).sum().item() == pytest.approx(whole.item())


def test_a_sample_depends_on_its_key_alone():
    objective = make(noise_offset=0.1, multires_noise_discount=0.3, ip_noise_gamma=0.1)
    latents = torch.randn(4, 4, 8, 8)
    whole = objective.draw(latents, keys(4))
    for i in range(4):
        one = objective.draw(latents[i : i + 1], keys(1, start=i))
        for name in ("noisy", "target", "timesteps", "noise", "weights"):
            assert torch.equal(getattr(one, name)[0], getattr(whole, name)[i]), name
    other = objective.draw(latents, [("noise", 42, 8, i) for i in range(4)])
    assert not torch.equal(other.noise, whole.noise)


def test_options_do_not_disturb_each_others_random_numbers():
    latents = torch.randn(3, 4, 8, 8)
    plain = make().draw(latents, keys(3))
    offset = make(noise_offset=0.1).draw(latents, keys(3))
    assert torch.equal(plain.timesteps, offset.timesteps)
    change = offset.noise - plain.noise
    assert torch.allclose(change, change[..., :1, :1].expand_as(change), atol=1e-6)
    perturbed = make(ip_noise_gamma=0.1).draw(latents, keys(3))
    assert torch.equal(perturbed.target, plain.target)
    assert not torch.equal(perturbed.noisy, plain.noisy)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_whole_loss_by_hand(prediction_type):
    objective = make(prediction_type, weighting="min_snr", min_snr_gamma=5.0)
    latents = torch.randn(2, 4, 8, 8)
    sample = objective.draw(latents, keys(2))
    prediction = torch.randn(2, 4, 8, 8)
    got = objective.losses(prediction, sample)
    for i in range(2):
        kept = float(SCHEDULE[int(sample.timesteps[i])])
        ratio = kept / (1 - kept)
        noise = sample.noise[i]
        noisy = math.sqrt(kept) * latents[i] + math.sqrt(1 - kept) * noise
        assert torch.allclose(sample.noisy[i], noisy, atol=1e-5)
        aim, weight = {
            "epsilon": (noise, min(ratio, 5) / ratio),
            "v_prediction": (
                math.sqrt(kept) * noise - math.sqrt(1 - kept) * latents[i],
                min(ratio, 5) / (ratio + 1),
            ),
            "sample": (latents[i], min(ratio, 5)),
        }[prediction_type]
        expected = weight * float((prediction[i] - aim).square().mean())
        assert got[i].item() == pytest.approx(expected, rel=1e-4)


def test_each_loss_option_changes_the_loss():
    latents, prediction = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    variants = (
        {},
        {"loss": "l1"},
        {"loss": "huber"},
        {"loss": "smooth_l1"},
        {"loss": "huber", "huber_schedule": "snr"},
        {"loss": "huber", "huber_schedule": "exponential"},
        {"loss": "huber", "huber_c": 0.5},
        {"weighting": "min_snr", "min_snr_gamma": 0.1},
        {"weighting": "debiased_estimation"},
        {"weighting": "v_equivalent"},
        {"weighting": "v_equivalent", "max_weight": 1.1},
        {"weighting": "debiased_estimation", "max_timestep": 300},
        {"weighting": "debiased_estimation", "min_timestep": 700},
        {"weighting": "debiased_estimation", "timestep_bias": "later"},
    )
    steps = torch.tensor([300, 800])
    seen = set()
    for variant in variants:
        fixed = None if "timestep" in str(variant) else steps
        objective = make(**variant)  # type: ignore[arg-type]
        sample = objective.draw(latents, keys(2), timesteps=fixed)
        seen.add(round(float(objective.losses(prediction, sample).sum()), 6))
    assert len(seen) == len(variants)


def test_a_mask_confines_the_gradient():
    objective = make()
    prediction = torch.randn(1, 4, 8, 8, requires_grad=True)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32, :32] = 1
    objective.losses(
        prediction, objective.draw(torch.randn(1, 4, 8, 8), keys(1)), mask
    ).sum().backward()
    assert prediction.grad is not None
    assert (prediction.grad[..., :4, :4] != 0).all()
    assert (prediction.grad[..., 4:, :] == 0).all()


def test_zero_terminal_snr_changes_the_schedule_and_refuses_epsilon():
    objective = make("v_prediction", zero_terminal_snr=True)
    latents = torch.randn(1, 4, 8, 8)
    last = objective.draw(latents, keys(1), timesteps=torch.tensor([999]))
    assert torch.equal(last.noisy, last.noise)
    assert torch.equal(last.target, -latents)
    with pytest.raises(UserError, match="epsilon"):
        make("epsilon", zero_terminal_snr=True)


def test_half_precision_latents_keep_an_exact_target():
    sample = make().draw(torch.randn(1, 4, 8, 8, dtype=torch.bfloat16), keys(1))
    assert sample.noisy.dtype == torch.bfloat16
    assert sample.target.dtype == torch.float32
    assert make().losses(torch.zeros(1, 4, 8, 8).bfloat16(), sample).dtype == torch.float32


def test_bad_options_are_named():
    with pytest.raises(UserError, match="flow"):
        make("flow")
    with pytest.raises(UserError, match="above the last"):
        make(min_timestep=500, max_timestep=1)
