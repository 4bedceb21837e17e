"""What each option of ``memory`` and ``run.mixed_precision`` does in a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import runs as sessions
from helpers.runs import config_for, folder_for, train
from torch import nn
from torch.utils._pytree import tree_leaves

from dreambooth_core.attention.processors import KernelProcessor
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import read_receipt
from dreambooth_core.methods.quantized import QuantizedLinear, dequantize, quantize
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.proof import as_stored, sums_of
from dreambooth_core.trainer.reports import Compiling
from dreambooth_core.trainer.train import Training


@pytest.fixture
def training_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The training of the run that comes next, and the precisions in which its weights were
    trained: the proof brings those of a whole model into that of its file."""
    seen: dict[str, Any] = {}
    original = Training.train

    def watch(training: Training) -> None:
        seen["training"] = training
        original(training)
        seen["dtypes"] = {parameter.dtype for parameter in training.stepper.parameters}

    monkeypatch.setattr(Training, "train", watch)
    return seen


ROUNDING = {"int8": 0.01, "fp8": 0.03, "nf4": 0.15}
"""What quantising may cost of normal weights, as a share of them."""


@pytest.mark.parametrize("kind", ROUNDING)
def test_a_quantised_layer_is_its_rounded_weight(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 64), nn.Linear(64, 8, bias=False)).requires_grad_(False)
    exact = model[0].weight.clone()
    assert quantize(model, kind) == 2
    layer = model[0]
    assert isinstance(layer, QuantizedLinear)
    stored = sum(b.numel() * b.element_size() for b in layer.buffers())
    assert stored < exact.numel() * (0.6 if kind == "nf4" else 1.1)
    error = float((layer.weight - exact).norm() / exact.norm())
    assert 0 < error < ROUNDING[kind]
    inputs = torch.randn(3, 5, 128, requires_grad=True)
    output = model(inputs)
    output.square().sum().backward()
    gradient, inputs.grad = inputs.grad, None
    dequantize(model)
    assert type(model[0]) is nn.Linear
    plain = model(inputs)
    plain.square().sum().backward()
    torch.testing.assert_close(output, plain)
    torch.testing.assert_close(gradient, inputs.grad)


@pytest.mark.parametrize("scaled", ["no", "whole", "rows"])
def test_what_was_fp8_stays_that(scaled: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32).requires_grad_(False)
    rows = layer.weight * torch.logspace(-2, 0, 32)[:, None]
    limit = rows.abs().amax(1, keepdim=True) / 448
    scale = {"no": torch.ones(1), "whole": limit.amax(), "rows": limit}[scaled]
    codes = (rows / scale).to(torch.float8_e4m3fn).float()
    layer.weight.copy_(codes * scale)
    stored = layer.weight.clone()
    if scaled != "no":  # as the file's reader rounds it
        layer.weight.copy_(stored.bfloat16())
    found = QuantizedLinear(layer, "fp8").weight
    torch.testing.assert_close(found, stored, rtol=0 if scaled == "no" else 2**-8, atol=0)


def test_a_quantised_layer_saves_no_weight_for_backward() -> None:
    layer = QuantizedLinear(nn.Linear(64, 64), "int8")
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        layer(torch.randn(2, 64, requires_grad=True))
    assert sum(saved) == 0


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "oft", "textual_inversion"])
def test_adapters_train_on_a_4_bit_base(
    base: Path, pictures: Path, tmp_path: Path, training_of: dict[str, Any], method: str
) -> None:
    changes = {"method__kind": method, "memory__quantize": "nf4", "run__steps": 2}
    folder = train(config_for(base, pictures, tmp_path, **changes), proven=True)
    parts = training_of["training"].parts
    kept = [m for m in parts.denoiser.modules() if isinstance(m, QuantizedLinear)]
    assert len(kept) > 10
    assert read_receipt(folder)["proof"]["passed"]


@pytest.mark.parametrize("kind", ROUNDING)
def test_quantisation_changes_the_loss_a_little(
    base: Path, pictures: Path, tmp_path: Path, kind: str
) -> None:
    _, (plain, *_) = learned(config_for(base, pictures, tmp_path))
    changes = {"run__name": kind, "memory__quantize": kind}
    _, (rounded, *_) = learned(config_for(base, pictures, tmp_path, **changes))
    assert 0 < abs(rounded - plain) < 0.05 * plain


def test_a_quantised_base_is_not_fine_tuned(base: Path, pictures: Path, tmp_path: Path) -> None:
    changes = {"method__kind": "full", "memory__quantize": "nf4"}
    with pytest.raises(UserError, match="4-bit or 8-bit base cannot be combined"):
        train(config_for(base, pictures, tmp_path, **changes))


def test_the_attention_asked_for_is_used(base: Path, pictures: Path, tmp_path: Path) -> None:
    _, plain = learned(config_for(base, pictures, tmp_path))
    changes = {"run__name": "chunked", "memory__attention": "chunked"}
    training, chunked = learned(config_for(base, pictures, tmp_path, **changes))
    processors = training.parts.denoiser.attn_processors.values()
    assert all(isinstance(p, KernelProcessor) and p.name == "chunked" for p in processors)
    assert chunked == pytest.approx(plain, rel=1e-4)


def test_an_attention_that_cannot_run_is_refused(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="xformers"):
        train(config_for(base, pictures, tmp_path, memory__attention="xformers"))


@pytest.mark.parametrize("method", ["lora", "textual_inversion", "full"])
def test_gradient_checkpointing_changes_memory_not_losses(
    base: Path, pictures: Path, tmp_path: Path, method: str
) -> None:
    changes: dict[str, Any] = {"method__kind": method}
    _, plain = learned(config_for(base, pictures, tmp_path, **changes))
    changes |= {"memory__gradient_checkpointing": "true", "run__name": "checkpointed"}
    training, again = learned(config_for(base, pictures, tmp_path, **changes))
    assert again == pytest.approx(plain, rel=1e-4)
    parts = training.parts
    assert parts.denoiser.is_gradient_checkpointing
    assert parts.text_encoders[0].is_gradient_checkpointing == (method == "textual_inversion")


def test_repeated_blocks_are_compiled_when_asked(
    base: Path,
    pictures: Path,
    tmp_path: Path,
    training_of: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled: list[object] = []

    def compile_(call: Any, **_: object) -> Any:
        compiled.append(call)
        return call

    monkeypatch.setattr(torch, "compile", compile_)
    changes = {"memory__compile": "true", "run__steps": 1}
    folder = train(config_for(base, pictures, tmp_path, **changes))
    stages = [event.get("stage") for event in folder.events]
    assert stages.index("compiling") < stages.index("train")
    blocks = [c.__self__ for c in compiled]
    found = training_of["training"].parts.denoiser.modules()
    assert blocks == [m for m in found if type(m).__name__ == "BasicTransformerBlock"]
    assert len(blocks) > 1


def test_what_compiling_took_is_told_and_is_in_no_pace(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: call)
    # The compiler's clock: what was spent before the run, and what after each of its steps.
    clock = iter([5.0, 1005.0, 1005.0, 3005.0])
    monkeypatch.setattr(Compiling, "_now", lambda self: next(clock) if self._wanted else 0.0)
    folder = train(config_for(base, pictures, tmp_path, memory__compile="true", run__steps=3))
    steps = [e for e in folder.events if e.get("stage") == "train"]
    assert [e.get("compile_seconds") for e in steps] == [1000, None, 3000]
    assert [e["seconds_per_step"] > 0 for e in steps] == [False, True, False]
    assert read_receipt(folder)["memory"]["compile_seconds"] == 3000


def test_compiling_is_timed_forward_and_backward() -> None:
    torch.compiler.reset()
    compiling, none = Compiling(wanted=True), Compiling(wanted=False)
    weight = torch.ones(2, requires_grad=True)
    double = torch.compile(lambda tensor: (tensor * 2).sin(), backend="aot_eager")
    answer = double(weight).sum()
    forward = compiling.lap()
    answer.backward()
    assert forward > 0
    assert compiling.lap() > 0
    double(weight).sum().backward()
    assert compiling.lap() == none.lap() == 0
    assert compiling.told()["compile_seconds"] == round(compiling.seconds, 1)
    assert compiling.told() == none.told() == {}


def test_compiled_blocks_are_recorded_when_asked(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[object] = []
    marks: list[None] = []

    def compile_(call: Any, *, mode: object = None, **_: object) -> Any:
        modes.append(mode)
        return call

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: marks.append(None))
    changes = {"memory__compile": "true", "memory__cuda_graphs": "true"}
    config = config_for(base, pictures, tmp_path, **changes)
    monkeypatch.setattr("dreambooth_core.trainer.decide.refuse_settings", lambda *_, **__: None)
    training = sessions.training_of(config, folder_for(config))
    assert len(modes) > 1 and set(modes) == {"reduce-overhead"}
    for _ in range(2):
        training.train_step()
    assert len(marks) == 2


def test_fused_backward_steps_and_leaves_no_gradients(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"optim__max_grad_norm": 0}
    _, plain = learned(config_for(base, pictures, tmp_path, **changes))
    changes |= {"optim__fused_backward_pass": "true", "run__name": "fused"}
    training, fused = learned(config_for(base, pictures, tmp_path, **changes))
    assert fused == pytest.approx(plain, rel=1e-6)
    assert training.stepper.finish() is None
    assert all(p.grad is None for p in training.stepper.parameters)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_full_bf16_keeps_trained_weights_in_bf16(
    base: Path, pictures: Path, tmp_path: Path, training_of: dict[str, Any], method: str
) -> None:
    changes = {
        "method__kind": method,
        "run__mixed_precision": "full_bf16",
        "optim__stochastic_rounding": "true",
        "run__steps": 2,
    }
    folder = train(config_for(base, pictures, tmp_path, **changes), proven=True)
    assert training_of["dtypes"] == {torch.bfloat16}
    assert read_receipt(folder)["proof"]["passed"]


def test_mixed_bf16_keeps_trained_weights_in_fp32(
    base: Path, pictures: Path, tmp_path: Path, training_of: dict[str, Any]
) -> None:
    train(config_for(base, pictures, tmp_path, run__mixed_precision="bf16", run__steps=1))
    training = training_of["training"]
    assert {p.dtype for p in training.stepper.parameters} == {torch.float32}
    assert training.parts.denoiser.conv_in.weight.dtype == torch.bfloat16
    assert next(training.parts.vae.parameters()).dtype == torch.float32


STREAMED: dict[str, dict[str, Any]] = {
    "an adapter": {},
    "dora on a 4-bit base": {"method__kind": "dora", "memory__quantize": "nf4"},
    "a word": {"method__kind": "textual_inversion"},
    "checkpointed": {"memory__gradient_checkpointing": "true"},
    "bf16": {"run__mixed_precision": "bf16"},
    "half of the blocks": {"memory__stream": "0.5"},
    "full": {
        "method__kind": "full",
        "optim__fused_backward_pass": "true",
        "optim__max_grad_norm": 0,
        "optim__ema__enabled": "true",
        "memory__gradient_checkpointing": "true",
    },
    "full in bf16": {
        "method__kind": "full",
        "run__mixed_precision": "full_bf16",
        "optim__stochastic_rounding": "true",
        "optim__fused_backward_pass": "true",
        "optim__max_grad_norm": 0,
    },
}


def learned(config: TrainConfig) -> tuple[Training, list[float]]:
    """A run after two steps, and their losses."""
    training = sessions.training_of(config, folder_for(config))
    found = []
    for step in range(2):
        training.stepper.begin(step)
        found += training.backward(step)[:, 0].tolist()
        training.stepper.finish(training.precision.scaler)
        if training.ema:
            training.trained.settle()
            training.ema.update(step + 1)
    return training, found


@pytest.mark.parametrize("case", STREAMED)
def test_streaming_changes_where_weights_lie_not_losses(
    base: Path, pictures: Path, tmp_path: Path, case: str
) -> None:
    changes = {
        "memory__stream": 1,
        "validation__prompts": "['sks ball']",
        "validation__num_inference_steps": 1,
        **STREAMED[case],
    }
    streamed, found = learned(config_for(base, pictures, tmp_path, **changes))
    assert streamed.parts.streaming is not None
    blocks = streamed.parts.streaming.on_device
    assert sum(map(bool, blocks)) <= 2 < len(blocks)
    changes |= {"memory__stream": "off", "run__name": "plain"}
    plain, wanted = learned(config_for(base, pictures, tmp_path, **changes))
    assert plain.parts.streaming is None
    assert found == wanted
    images = []
    for training in (streamed, plain):
        training.sample()
        images += [file.read_bytes() for file in training.folder.samples.glob("*.png")]
    assert len(images) == 2 and images[0] == images[1]
    state, same = (
        tree_leaves([s.trained.at(2).weights, s.trained.at(2).states]) for s in (streamed, plain)
    )
    tensors = [(a, b) for a, b in zip(state, same, strict=True) if isinstance(a, torch.Tensor)]
    assert len(tensors) > 3
    assert all(torch.equal(a, b) for a, b in tensors)
    sums = [sums_of(as_stored(training.parts, torch.float16)) for training in (streamed, plain)]
    assert sums[0] == sums[1]


def test_a_streamed_run_ends_in_a_proven_result(
    base: Path, pictures: Path, tmp_path: Path, training_of: dict[str, Any]
) -> None:
    config = config_for(base, pictures, tmp_path, memory__stream=1, run__steps=1)
    folder = train(config, proven=True)
    assert training_of["training"].parts.streaming is not None
    assert read_receipt(folder)["proof"]["passed"]


def test_streaming_a_full_fine_tune_needs_the_fused_backward_pass(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    changes = {"method__kind": "full", "memory__stream": 1}
    with pytest.raises(UserError, match="all gradients would be on the device at once"):
        train(config_for(base, pictures, tmp_path, **changes))
    with pytest.raises(UserError, match="'most' is not a share of the blocks"):
        train(config_for(base, pictures, tmp_path, memory__stream="most"))
