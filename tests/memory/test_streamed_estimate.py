"""What streaming is estimated to save and to cost, against what it really does."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dreambooth_core.families.stable_diffusion.build import empty
from dreambooth_core.families.stable_diffusion.family import StableDiffusion1
from dreambooth_core.memory.budget import changed_config
from dreambooth_core.memory.estimate import (
    COMPUTED,
    COPIED,
    Estimator,
    Part,
    pace,
)
from dreambooth_core.memory.models import training_step
from dreambooth_core.memory.streaming import Streaming
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.combinations import Asked

UNET = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}


def streaming_of(share: float) -> Asked:
    """A run of which so much lies in RAM."""
    changes = {"optim.fused_backward_pass": True, "memory.stream": str(share)}
    return Asked(changed_config(TrainConfig(), changes), "cpu")


def estimator(*, trained: bool) -> Estimator:
    model = empty("unet", UNET).requires_grad_(trained)
    model.conv_out.requires_grad_(True)
    part = Part("unet", model, blocks=StableDiffusion1().blocks(model))
    return Estimator([part], training_step(model, batch=1, height=64, width=64), device="cpu")


def held(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def test_what_stays_on_the_device_is_what_streaming_keeps_there() -> None:
    found = estimator(trained=False)
    whole, streamed = (found.estimate(streaming_of(share)) for share in (0.0, 1.0))
    model = UNet2DConditionModel(**UNET).requires_grad_(False)
    blocks = StableDiffusion1().blocks(model)
    streaming = Streaming(model, blocks, torch.device("cpu"))
    seen = [0]
    for block in blocks:
        block.register_forward_pre_hook(lambda *_: seen.append(sum(streaming.on_device)))
    for _ in range(2):
        model(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 32))
    in_blocks = sum(held(block) for block in blocks)
    assert whole.weights == held(model)
    assert whole.weights - streamed.weights <= in_blocks - max(seen) * 0.9
    assert streamed.weights >= held(model) - in_blocks + max(seen) * 0.9
    assert streamed.streamed == in_blocks
    assert streamed.optimizer == whole.optimizer


def test_states_travel_with_trained_weights() -> None:
    found = estimator(trained=True)
    whole, half, streamed = (found.estimate(streaming_of(share)) for share in (0.0, 0.5, 1.0))
    assert streamed.optimizer < half.optimizer < whole.optimizer
    assert streamed.peak < half.peak < whole.peak
    assert streamed.streamed > 2.5 * found.estimate(streaming_of(0.0)).weights / 2
    assert streamed.seconds > whole.seconds


def test_operations_are_those_that_torch_counts() -> None:
    model = UNet2DConditionModel(**UNET)
    # The only attention whose operations torch counts on a CPU.
    plain = sdpa_kernel(SDPBackend.MATH)
    with plain, FlopCounterMode(display=False) as counted, torch.no_grad():
        model(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 77, 32))
    found = estimator(trained=True).trace.operations
    assert found == pytest.approx(counted.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("work", [7.0, 7e6])
@pytest.mark.parametrize(
    ("trained", "checkpointing", "times", "copied"),
    [(False, False, 2, 20), (False, True, 3, 20), (True, True, 4, 42)],
)
def test_the_longer_of_computing_and_copying_counts(
    work: float, trained: bool, checkpointing: bool, times: int, copied: int
) -> None:
    found = pace(
        work, streamed=10, states=6, trained=trained, checkpointing=checkpointing, passes=2
    )
    assert found == max(work * times * 2 / COMPUTED, copied * 2 / COPIED)
