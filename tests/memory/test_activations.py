"""The traced activations are those that a real model on the CPU saves, to the byte."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dreambooth_core.families.stable_diffusion.build import empty
from dreambooth_core.memory.activations import trace
from dreambooth_core.memory.models import training_step

UNET: dict[str, Any] = {
    "sample_size": 16,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "block_out_channels": (32, 64, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "norm_num_groups": 8,
    "layers_per_block": 1,
}
SDXL: dict[str, Any] = {
    **UNET,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "transformer_layers_per_block": (1, 2, 1),
    "use_linear_projection": True,
}
SD15: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}


def prepare(unet: nn.Module, method: str, device: str) -> None:
    unet.train()
    if method != "full":
        import peft

        unet.requires_grad_(False)
        config = peft.LoraConfig(
            r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"], use_dora=method == "dora"
        )
        with torch.device(device):
            peft.inject_adapter_in_model(config, unet)


def really_saved(
    config: dict[str, Any], method: str, checkpointing: bool, half: torch.dtype | None
) -> int:
    """Bytes of the storages that autograd saves in a real forward pass, weights left out."""
    unet = UNet2DConditionModel(**config)
    prepare(unet, method, "cpu")
    if checkpointing:
        unet.enable_gradient_checkpointing()
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    added = None
    if config is SDXL:
        added = {"text_embeds": torch.zeros(2, 16), "time_ids": torch.zeros(2, 6)}
    autocast = torch.autocast("cpu", half) if half else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        out = unet(
            torch.zeros(2, 4, 16, 16),
            torch.tensor([1.0, 2.0]),
            torch.zeros(2, 77, 32),
            added_cond_kwargs=added,
        ).sample
        (out.float() - torch.zeros_like(out).float()).square().flatten(1).mean()
    return sum(sizes.values())


def traced(config: dict[str, Any], method: str, half: torch.dtype | None) -> Any:
    unet = empty("unet", config)
    prepare(unet, method, "meta")
    run = training_step(unet, batch=2, height=128, width=128)
    return trace([unet], run, autocast=half, norms_in_fp32=False)


@pytest.mark.parametrize("config", [UNET, SDXL], ids=["sd", "sdxl"])
@pytest.mark.parametrize("method", ["full", "lora", "dora"])
def test_it_equals_what_autograd_saves(config, method):
    found = traced(config, method, None)
    for checkpointing in (False, True):
        real = really_saved(config, method, checkpointing, None)
        assert found.kept(checkpointing) == pytest.approx(real, rel=1e-4)
    assert found.kept(True) < 0.4 * found.kept(False)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_autocast_is_acted_out(method):
    found = traced(UNET, method, torch.bfloat16)
    for checkpointing in (False, True):
        real = really_saved(UNET, method, checkpointing, torch.bfloat16)
        assert found.kept(checkpointing) == pytest.approx(real, rel=0.01)
    assert found.kept(False) < 0.9 * traced(UNET, method, None).kept(False)
    assert found.forward_peak(True) >= found.kept(True)


@pytest.mark.library_api
@pytest.mark.parametrize("kind", ["dropout", "loha", "lokr", "oft"])
def test_every_kind_of_adapter_can_be_traced(kind):
    import peft

    targets = ["to_q", "to_k", "to_v", "conv1"]
    config = {
        "dropout": lambda: peft.LoraConfig(r=4, lora_dropout=0.5, target_modules=targets),
        "loha": lambda: peft.LoHaConfig(r=4, target_modules=targets),
        "lokr": lambda: peft.LoKrConfig(r=4, target_modules=targets),
        "oft": lambda: peft.OFTConfig(
            r=0, oft_block_size=4, target_modules=targets, use_cayley_neumann=False
        ),
    }[kind]()
    unet = empty("unet", UNET).requires_grad_(False)
    with torch.device("meta"):
        peft.inject_adapter_in_model(config, unet)
    found = trace([unet], training_step(unet, batch=1, height=128, width=128))
    assert found.kept(True) < found.kept(False)
    trained = {id(p) for p in unet.parameters() if p.requires_grad}
    assert trained == {id(p) for block in found.blocks for p in block.parameters}


def small(run: Callable[[], torch.Tensor], *modules: nn.Module, **options: Any) -> Any:
    return trace(list(modules), run, **options)


def test_a_chain_by_hand():
    """Three linear layers with a ReLU each: the inputs of the layers and the ReLUs' outputs."""
    with torch.device("meta"):
        net = nn.Sequential(
            *[m for _ in range(3) for m in (nn.Linear(8, 8, bias=False), nn.ReLU())]
        )
        data = torch.empty(5, 8)
    found = small(lambda: net(data), net)
    one = 5 * 8 * 4
    assert found.kept(False) == 4 * one  # data, and the three ReLUs' outputs
    assert found.largest == one
    weight = 8 * 8 * 4
    # Gradients appear one after the other while activations go.
    assert found.backward_peak(checkpointing=False, gradients="there") == 4 * one + 3 * weight
    assert found.backward_peak(checkpointing=False, gradients="one") == 4 * one + weight


def test_norms_are_fp32_on_gpus_only():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))
        data = torch.empty(4, 8)
    on_gpu = small(lambda: net(data), net, autocast=torch.float16)
    on_cpu = small(lambda: net(data), net, autocast=torch.float16, norms_in_fp32=False)
    assert on_gpu.kept(False) > on_cpu.kept(False)


def test_attention_keeps_no_scores():
    with torch.device("meta"):
        query = torch.empty(1, 2, 64, 4, requires_grad=True)
    attend = torch.nn.functional.scaled_dot_product_attention
    fused = small(lambda: attend(query, query, query))
    assert fused.kept(False) == 2 * (2 * 64 * 4 * 4) + 2 * 64 * 4


def test_the_model_is_left_as_it_was():
    unet = empty("unet", UNET)
    unet.eval()
    before = [getattr(m, "gradient_checkpointing", None) for m in unet.modules()]
    small(training_step(unet, batch=1, height=64, width=64), unet)
    assert [getattr(m, "gradient_checkpointing", None) for m in unet.modules()] == before
    assert not unet.training


def test_stable_diffusion_is_answered_in_seconds():
    start = time.process_time()
    unet = empty("unet", SD15).to(torch.bfloat16)
    run = training_step(unet, batch=1, height=512, width=512, dtype=torch.bfloat16)
    found = trace([unet], run)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964
    # With a fused attention kernel; the math kernel would keep about 3 GiB of scores more.
    assert 0.8 < found.kept(False) / 2**30 < 1.0
    assert 0.1 < found.kept(True) / 2**30 < 0.2
    assert time.process_time() - start < 5.0
