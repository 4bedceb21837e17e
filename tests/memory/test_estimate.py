"""Every option that costs or saves memory shows in the estimate, by the right amount."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dreambooth_core.families.stable_diffusion.build import empty
from dreambooth_core.memory.budget import changed_config
from dreambooth_core.memory.estimate import (
    CUDA_CONTEXT,
    Estimate,
    Estimator,
    Part,
)
from dreambooth_core.memory.measure import peak_memory, resident, room
from dreambooth_core.memory.models import (
    encoding_peak,
    training_step,
)
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.combinations import Asked

UNET: dict[str, Any] = {
    "sample_size": 16,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "vocab_size": 100,
    "max_position_embeddings": 77,
}


def asked(changes: dict[str, Any] | None = None, device: str = "cpu", processes: int = 1) -> Asked:
    """The defaults with other values of some keys."""
    return Asked(changed_config(TrainConfig(), changes or {}), device, processes)


CPU = asked()


def unet(trained: bool = True) -> nn.Module:
    return empty("unet", UNET).requires_grad_(trained)


def run(model: nn.Module, **more: Any) -> Any:
    return training_step(model, batch=2, height=128, width=128, **more)


@pytest.fixture(scope="module")
def full() -> Estimator:
    model = unet()
    return Estimator([Part("unet", model)], run(model), device="cpu")


def test_the_parts_by_hand(full):
    found = full.estimate(CPU)
    numbers = sum(p.numel() for p in UNet2DConditionModel(**UNET).parameters())
    assert found.trained == numbers
    assert found.weights == numbers * 4
    assert found.gradients == numbers * 4
    assert found.optimizer == numbers * 8
    assert found.overhead == 0
    assert found.peak == (
        found.weights + found.optimizer + found.training + found.workspace + found.ema
    )
    assert found.rows()[0][0] == "weights"


def test_options_change_what_they_should(full):
    plain = full.estimate(CPU)
    assert full.estimate(asked({"optim.optimizer": "adafactor"})).optimizer < 0.3 * plain.optimizer
    assert full.estimate(asked({"optim.optimizer": "adamw8bit"})).optimizer < 0.5 * plain.optimizer
    assert full.estimate(asked({"optim.ema.enabled": True})).ema == plain.weights
    assert full.estimate(asked({"optim.ema.enabled": True, "optim.ema.on_cpu": True})).ema == 0
    fused = full.estimate(asked({"optim.fused_backward_pass": True}))
    assert fused.gradients < 0.2 * plain.gradients
    assert fused.peak < plain.peak
    checkpointed = full.estimate(asked({"memory.gradient_checkpointing": True}))
    assert checkpointed.activations < 0.5 * plain.activations
    assert 0 < checkpointed.recomputed < plain.activations
    assert checkpointed.peak < plain.peak
    accumulated = full.estimate(asked({"run.gradient_accumulation_steps": 4}))
    assert accumulated.training == plain.activations + plain.gradients
    assert full.estimate(asked({"optim.optimizer": "paged_adamw8bit"})).paged
    rounded = full.estimate(asked({"optim.stochastic_rounding": True}))
    assert rounded.workspace > plain.workspace
    assert full.estimate(asked(processes=2)).workspace > plain.workspace


def test_training_peaks_between_the_largest_part_and_the_sum(full):
    for checkpointing in (False, True):
        found = full.estimate(asked({"memory.gradient_checkpointing": checkpointing}))
        assert found.training >= max(found.activations, found.gradients)
        assert found.training <= found.activations + found.gradients + found.recomputed


def test_frozen_parts_need_no_gradients_and_cached_ones_no_weights():
    model, text, vae = unet(), empty("text_encoder", TEXT), empty("vae", {"norm_num_groups": 32})
    text.requires_grad_(False)
    vae.requires_grad_(False)
    parts = [Part("unet", model), Part("text_encoder", text), Part("vae", vae, resident=False)]
    found = estimate(parts, run(model), CPU)
    alone = estimate(parts[:1], run(model), CPU)
    assert found.gradients == alone.gradients
    assert found.weights - alone.weights == pytest.approx(
        sum(p.numel() * 4 for p in text.parameters()), abs=77 * 8
    )


def estimate(parts: Sequence[Part], run: Callable[[], Any], asked: Asked) -> Estimate:
    """What one configuration needs."""
    traced = Estimator(parts, run, precision=asked.precision, device=asked.device)
    return traced.estimate(asked)


def test_a_trained_text_encoder_costs_activations_and_states():
    model, text = unet(), empty("text_encoder", TEXT)
    parts = [Part("unet", model), Part("text_encoder", text)]
    trained = estimate(parts, run(model, text_encoders={"text_encoder": text}), CPU)
    text.requires_grad_(False)
    frozen = estimate(parts, run(model), CPU)
    assert trained.activations > frozen.activations
    assert trained.optimizer > frozen.optimizer


def test_batch_and_size_scale_activations():
    model = unet()
    sizes = []
    for batch, side in ((1, 64), (2, 64), (1, 128)):
        step = training_step(model, batch=batch, height=side, width=side)
        sizes.append(estimate([Part("unet", model)], step, CPU).activations)
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.01)
    assert sizes[2] > 3 * sizes[0]


def test_lora_on_a_quantised_base():
    import peft

    model = unet(trained=False)
    with torch.device("meta"):
        config = peft.LoraConfig(r=4, target_modules=["to_q", "to_k", "to_v", "proj"])
        peft.inject_adapter_in_model(config, model)
    estimator = Estimator([Part("unet", model)], run(model), device="cpu")
    plain, four = (estimator.estimate(asked({"memory.quantize": kind})) for kind in ("no", "nf4"))
    linear = sum(
        m.weight.numel()
        for m in model.modules()
        if isinstance(m, nn.Linear) and not m.weight.requires_grad
    )
    assert plain.weights - four.weights == pytest.approx(linear * (4 - 0.516), rel=0.01)
    assert plain.trained == four.trained < 0.1 * linear
    eight = estimator.estimate(asked({"memory.quantize": "int8"}))
    assert plain.weights - eight.weights == pytest.approx(linear * 3, rel=0.01)


def test_half_precision_and_the_driver():
    model = unet()
    bf16 = asked({"run.mixed_precision": "bf16"}, "cuda")
    half = estimate([Part("unet", model)], run(model), bf16)
    single = estimate([Part("unet", model)], run(model), asked(device="cuda"))
    assert half.overhead == CUDA_CONTEXT
    assert half.activations < single.activations


def test_encoding_needs_more_for_larger_pictures():
    vae = empty("vae", {"block_out_channels": (32, 64), "norm_num_groups": 32})
    small = encoding_peak(vae, 32, batch=1, height=64, width=64)
    large = encoding_peak(vae, 32, batch=1, height=128, width=128)
    assert large - small == 3 * 32 * 4 * (128 * 128 - 64 * 64)


def allocated_peak(step: Callable[[], Any]) -> int:
    """The most bytes that tensors took at once during a real step, by torch's allocator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("widths", "side"), [((128, 256), 8), ((32, 64), 32)])
def test_the_estimate_is_that_of_a_real_step(widths, side, checkpointing):
    """Once gradients prevail, once activations."""
    config = {**UNET, "block_out_channels": widths}
    model = empty("unet", config)
    step = training_step(model, batch=2, height=side * 8, width=side * 8)
    setting = asked({"memory.gradient_checkpointing": checkpointing})
    found = estimate([Part("unet", model)], step, setting)
    real = UNet2DConditionModel(**config)
    real.train()
    if checkpointing:
        real.enable_gradient_checkpointing()

    def once() -> None:
        inputs = torch.zeros(2, 4, side, side), torch.ones(2), torch.zeros(2, 77, 32)
        real(*inputs).sample.square().mean().backward()

    peak = allocated_peak(once)
    assert found.training < 1.02 * peak
    assert peak < 1.02 * (found.training + found.workspace)


def take(mebibytes: int) -> mmap.mmap:
    """Resident memory that is new: an allocator might give what earlier tests left it."""
    block = mmap.mmap(-1, mebibytes * 2**20)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    return block


def test_measuring():
    with peak_memory(torch.device("cpu")) as peak:
        take(48).close()
    assert peak.on == "process"
    assert 40 * 2**20 < peak.extra < 80 * 2**20
    assert resident() > 2**20
    here = room(torch.device("cpu"))
    assert 0 < here.free <= here.total


def test_measuring_by_sampling(monkeypatch):
    import time

    from dreambooth_core.memory import measure

    monkeypatch.setattr(measure, "_reset_system_peak", lambda: False)
    with peak_memory(torch.device("cpu")) as peak:
        block = take(64)
        time.sleep(0.2)
        block.close()
    assert peak.extra > 40 * 2**20
