"""What only a GPU can show: promised memory, no waiting in a step, and every precision and kernel.

Without one, the tests that are marked ``gpu`` are skipped, and what they are made of is tried on
the CPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.real_sizes import SMALL, grown
from helpers.runs import config_for, folder_for, training_of

from benchmarks.estimates import AIMS
from benchmarks.models import MODELS
from dreambooth_core.devices import send
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.memory.advice import fit
from dreambooth_core.memory.estimate import CUDA_CONTEXT
from dreambooth_core.memory.measure import peak_memory, room
from dreambooth_core.options.memory import GIB
from dreambooth_core.trainer import kernels
from dreambooth_core.trainer.train import Training

GPU = torch.device("cuda", 0)


def on_gpu(base: Path, pictures: Path, root: Path, **changes: Any) -> Training:
    config = config_for(base, pictures, root, run__device="cuda", **changes)
    return training_of(config, folder_for(config), "cuda")


def losses(training: Training, steps: int = 3) -> list[float]:
    training._to_training()
    return [float(training.train_step()[0].sum()) for _ in range(steps)]


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an Nvidia GPU")
@pytest.mark.parametrize(("name", "method", "side", "budget"), AIMS)
def test_a_budget_is_kept(
    pictures: Path, tmp_path: Path, name: str, method: str, side: int, budget: int
) -> None:
    config = config_for(
        SMALL[name](tmp_path / "base"),
        pictures,
        tmp_path,
        data__resolution=side,
        method__kind=method,
        method__rank=16,
        run__device="cuda",
        run__mixed_precision="bf16",
        run__batch_size=1,
        run__steps=2,
        optim__optimizer="adamw8bit",
        memory__budget=f"{budget}GB",
        save__at_end="false",
    )
    found = fit(config, {"optim.optimizer"}, configs=MODELS[name])
    assert found.needs is not None
    if found.needs.ram > room(torch.device("cpu")).free:
        pytest.skip(f"needs {found.needs.ram / GIB:.0f} GiB of RAM")
    with grown(MODELS[name], torch.bfloat16), peak_memory(GPU) as measured:
        training = training_of(found.config, folder_for(found.config), "cuda")
        training.train()
    promised = found.needs.peak
    print(f"{name} {method}: {measured.peak / GIB:.2f} of {(promised - CUDA_CONTEXT) / GIB:.2f}")
    assert measured.peak + CUDA_CONTEXT <= promised * 1.05
    assert measured.reserved + CUDA_CONTEXT <= budget * GIB


@pytest.mark.parametrize("name", ["SD 1.5", "Z-Image"])
def test_a_base_of_another_size_trains(pictures: Path, tmp_path: Path, name: str) -> None:
    """What the test above is made of, with networks of the tiny base's own size."""
    folder = SMALL[name](tmp_path / "base")
    configs = load_base(BaseOptions(model=str(folder)), weights=False).configs
    config = config_for(folder, pictures, tmp_path, run__steps=1)
    with grown(configs, torch.float32):
        training = training_of(config, folder_for(config))
    weights = training.parts.denoiser.state_dict().values()
    assert not any(tensor.is_meta for tensor in weights)
    assert all(torch.isfinite(torch.tensor(losses(training, 1))))


SETTINGS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16": {"run__mixed_precision": "fp16"},
    "bf16": {"run__mixed_precision": "bf16"},
    "full bf16": {"run__mixed_precision": "full_bf16", "optim__stochastic_rounding": "true"},
    "8-bit AdamW": {"optim__optimizer": "adamw8bit"},
    "paged 8-bit AdamW": {"optim__optimizer": "paged_adamw8bit"},
    "int8": {"memory__quantize": "int8"},
    "fp8": {"memory__quantize": "fp8"},
    "nf4": {"memory__quantize": "nf4"},
    "streamed": {"memory__stream": 1.0},
    "checkpointing": {"memory__gradient_checkpointing": "true"},
    "chunked attention": {"memory__attention": "chunked"},
    "xformers": {"memory__attention": "xformers", "run__mixed_precision": "bf16"},
    "compiled": {"memory__compile": "true"},
    "CUDA graphs": {
        "memory__compile": "true",
        "memory__cuda_graphs": "true",
        "run__mixed_precision": "bf16",
    },
    "fused backward pass": {
        "method__kind": "full",
        "optim__fused_backward_pass": "true",
        "optim__max_grad_norm": 0.0,
    },
    "streamed fine-tuning": {
        "method__kind": "full",
        "optim__fused_backward_pass": "true",
        "optim__max_grad_norm": 0.0,
        "memory__stream": 1.0,
    },
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an Nvidia GPU")
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_gpu_learns_what_a_cpu_learns(
    base: Path, pictures: Path, tmp_path: Path, setting: str
) -> None:
    changes = SETTINGS[setting]
    if setting == "xformers" and importlib.util.find_spec("xformers") is None:
        pytest.skip("xformers is not installed")
    method = {k: v for k, v in changes.items() if k == "method__kind"}
    plain = config_for(base, pictures, tmp_path / "cpu", run__device="cpu", **method)
    expected = losses(training_of(plain, folder_for(plain)))
    found = losses(on_gpu(base, pictures, tmp_path / "gpu", **changes))
    exact = setting in ("fp32", "streamed", "checkpointing")
    assert found == pytest.approx(expected, rel=1e-3 if exact else 0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an Nvidia GPU")
def test_what_was_sent_may_be_changed_at_once() -> None:
    tensor = torch.ones(2**22)
    torch.cuda._sleep(10**8)  # the device has something to do
    sent = send(tensor, GPU)
    tensor.zero_()
    again = send(tensor, GPU)
    assert float(sent.sum()) == 2**22 and float(again.sum()) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an Nvidia GPU")
@pytest.mark.parametrize(
    "changes",
    [
        {"run__mixed_precision": "bf16"},
        {"run__mixed_precision": "bf16", "method__kind": "full", "optim__ema__enabled": "true"},
        {"run__mixed_precision": "bf16", "memory__quantize": "int8"},
        {"run__mixed_precision": "bf16", "memory__stream": 1.0},
    ],
    ids=["lora", "full", "int8", "streamed"],
)
def test_a_step_waits_for_nothing(
    base: Path, pictures: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    training = on_gpu(base, pictures, tmp_path, **changes)
    losses(training, 2)  # kernels are chosen, states made
    torch.cuda.set_sync_debug_mode("error")
    try:
        training.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an Nvidia GPU")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_convolutions_may_lie_channels_last(
    base: Path, pictures: Path, tmp_path: Path, precision: str
) -> None:
    found = {}
    for choice in ("off", "on", "auto"):
        changes = {"run__name": choice, "memory__channels_last": choice}
        training = on_gpu(base, pictures, tmp_path, run__mixed_precision=precision, **changes)
        with kernels.chosen(training):
            found[choice] = losses(training)
    assert found["on"] == pytest.approx(found["off"], rel=0.05)
    assert found["auto"] == pytest.approx(found["off"], rel=0.05)
    assert (tmp_path / ".cache" / "layout.json").is_file()
