"""Proof on save: good files pass by someone else's loader, and spoiled files do not."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.model import Adapter, LoraWeights
from dreambooth_core.formats.adapters.naming import unfused
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.verify import verify_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import adapter_for, models_of


def probe(models: Mapping[str, nn.Module]) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    ids = torch.arange(5)[None]
    parts: dict[str, Any] = dict(models)
    hidden = parts["text_encoder"](ids).last_hidden_state
    if "text_encoder_2" not in parts:
        return parts["unet"](x, 3, hidden).sample
    second = parts["text_encoder_2"](ids)
    context = torch.cat([hidden, second.last_hidden_state], dim=-1)
    added = {"text_embeds": second.text_embeds, "time_ids": torch.ones(1, 6)}
    return parts["unet"](x, 3, context, added_cond_kwargs=added).sample


def trained(family: str, method: str = "lora") -> Adapter:
    """On linear layers as peft's users do, with one rank and one alpha."""
    adapter = adapter_for(family, method, alpha=3000.0 if method == "loha" else 3.0)
    ends = ("to_q", "to_k", "to_v", "to_out.0", "_proj", "fc1", "fc2")
    return adapter.with_modules(
        {n: w for n, w in adapter.modules.items() if n.endswith(ends) and "time_" not in n}
    )


def expected_of(family: str, adapter: Adapter) -> Tensor:
    models = models_of(family)
    AdapterStack(models).load("trained", adapter)
    with torch.no_grad():
        return probe(models)


@pytest.mark.parametrize(
    ("family", "layout", "method", "reader"),
    [
        ("sd1", "kohya", "lora", "diffusers"),
        ("sd1", "diffusers", "lora", "diffusers"),
        ("sd1", "peft", "dora", "peft"),
        ("sd1", "kohya", "loha", "dense"),
        ("sdxl", "kohya", "lora", "diffusers"),
        ("sdxl", "peft", "lora", "peft"),
    ],
)
def test_a_good_file_passes(
    family: str, layout: str, method: str, reader: str, tmp_path: Path
) -> None:
    adapter = trained(family, method)
    expected = expected_of(family, adapter)
    path = write_adapter(adapter, tmp_path / ("f" if layout == "peft" else "f.safetensors"), layout)
    models = models_of(family)
    before = {c: {k: t.clone() for k, t in m.state_dict().items()} for c, m in models.items()}
    proof = verify_adapter(path, models, probe, expected)
    assert proof.passed, proof.problems
    assert proof.reader == reader
    assert proof.effect > 2 * proof.tolerance
    assert proof.difference < 1e-4
    assert all(len(digest) == 64 for digest in proof.sha256.values())
    json.dumps(proof.as_dict())
    for component, model in models.items():  # nothing is left behind in the models
        after = model.state_dict()
        assert set(after) == set(before[component])
        assert all(torch.equal(after[k], t) for k, t in before[component].items())
    if layout != "peft":
        assert compare_weights(adapter, path) == 0.0


def compare_weights(trained: Adapter, path: Path) -> float:
    """How far the file's tensors are from those trained, relative."""
    saved = unfused(read_adapter(path))
    assert set(saved.modules) == set(trained.modules)
    wrong = right = 0.0
    for name, weights in trained.modules.items():
        for tail, tensor in weights.tensors().items():
            other = saved.modules[name].tensors()[tail]
            right += float(tensor.double().square().sum())
            wrong += float((other.double() - tensor.double()).square().sum())
    return math.sqrt(wrong / right)


def test_alphas_that_diffusers_mistakes_do_not_fail_a_good_file(tmp_path: Path) -> None:
    adapter = trained("sd1")
    for i, weights in enumerate(adapter.modules.values()):
        assert isinstance(weights, LoraWeights)
        weights.alpha = 1.0 + i % 3
    path = write_adapter(adapter, tmp_path / "f.safetensors")
    proof = verify_adapter(path, models_of("sd1"), probe, expected_of("sd1", adapter))
    assert proof.passed
    assert proof.reader == "dense"


def test_fp16_files_pass_within_their_precision(tmp_path: Path) -> None:
    adapter = trained("sd1")
    path = write_adapter(adapter, tmp_path / "f.safetensors", dtype=torch.float16)
    proof = verify_adapter(path, models_of("sd1"), probe, expected_of("sd1", adapter))
    assert proof.passed
    assert proof.difference > 0
    assert 0 < compare_weights(adapter, path) < 1e-3


@pytest.mark.parametrize(
    ("spoil", "word"),
    [("alpha", "differs"), ("lost", "differs"), ("nan", "NaN"), ("zero", "equals its base")],
)
def test_a_spoiled_file_fails(spoil: str, word: str, tmp_path: Path) -> None:
    adapter = trained("sd1")
    expected = expected_of("sd1", adapter)
    path = write_adapter(adapter, tmp_path / "f.safetensors")
    tensors = storage.read_tensors(path, copy=True)
    for key in list(tensors):
        if spoil == "alpha" and key.endswith(".alpha"):
            tensors[key] = tensors[key] * 2
        elif spoil == "lost" and "up_blocks" in key:
            del tensors[key]
        elif spoil == "zero" and key.endswith("lora_up.weight"):
            tensors[key].zero_()
    if spoil == "nan":
        next(t for k, t in tensors.items() if "lora_up" in k)[0, 0] = float("nan")
    storage.write_tensors(path, tensors, storage.read_metadata(path))
    proof = verify_adapter(path, models_of("sd1"), probe, expected)
    assert not proof.passed
    assert word in " ".join(proof.problems)


def test_an_adapter_that_learned_nothing_fails(tmp_path: Path) -> None:
    adapter = trained("sd1")
    for weights in adapter.modules.values():
        weights.up.zero_()  # type: ignore[attr-defined]
    path = write_adapter(adapter, tmp_path / "f.safetensors")
    proof = verify_adapter(path, models_of("sd1"), probe, expected_of("sd1", adapter))
    assert not proof.passed
    assert "changes nothing" in " ".join(proof.problems)


def test_an_unreadable_file_is_a_failed_proof(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    path.write_bytes(b"not a file")
    proof = verify_adapter(path, {}, probe, torch.zeros(1))
    assert not proof.passed
    assert proof.problems
