"""Extracting from two models, and baking back: what goes in comes out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.apply import bake, base_weights
from dreambooth_core.formats.adapters.extract import Extraction, extract
from dreambooth_core.formats.adapters.lowrank import Keep
from dreambooth_core.formats.adapters.merge import Part
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, LoraWeights
from tests.helpers.adapters import relative, weights_for

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
QUERY, CONV = f"unet.{ATTENTION}.to_q", "unet.up_blocks.1.resnets.0.conv1"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
States = dict[str, dict[str, Tensor]]


def states(dtype: torch.dtype = torch.float32) -> States:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    return {
        "unet": {
            f"{ATTENTION}.to_q.weight": draw(16, 12),
            f"{ATTENTION}.to_out.0.weight": draw(16, 16),
            f"{ATTENTION}.to_out.0.bias": draw(16),
            "up_blocks.1.resnets.0.conv1.weight": draw(12, 8, 3, 3),
            "up_blocks.1.resnets.0.conv1.bias": draw(12),
            "conv_norm_out.weight": draw(8),
            "conv_norm_out.bias": draw(8),
        },
        "text_encoder": {
            "text_model.encoder.layers.0.mlp.fc1.weight": draw(20, 10),
            "text_model.embeddings.token_embedding.weight": draw(30, 10),
            "text_model.embeddings.position_ids": torch.arange(5),
        },
    }


def adapter() -> Adapter:
    base = base_weights(states())
    names = (QUERY, CONV, TEXT)
    return Adapter({n: weights_for(base[n], "lora", seed=i) for i, n in enumerate(names)})


def test_bake_then_extract_returns_the_change() -> None:
    base, one = states(), adapter()
    baked, report = bake(base, [Part(one, 0.7)])
    assert report.modules == 3
    assert report.rounding < 1e-6
    found, extracted = extract(base, baked, Extraction(Keep(energy=1.0)))
    assert set(found.modules) == set(one.modules)
    for name, weights in found.modules.items():
        assert relative(weights.delta(), 0.7 * one.modules[name].delta()) < 1e-4, name
        assert isinstance(weights, LoraWeights)
    assert extracted.error < 1e-4
    assert extracted.left_out == 0.0
    assert extracted.unchanged == 2  # to_out, the token embedding
    cut, extracted = extract(base, baked, Extraction(Keep(rank=4)))
    assert extracted.error < 1e-4
    assert set(extracted.ranks.values()) == {4}
    assert relative(cut.modules[QUERY].delta(), 0.7 * one.modules[QUERY].delta()) < 1e-4


def test_untouched_tensors_are_passed_on() -> None:
    base = states()
    baked, _ = bake(base, [Part(adapter())])
    changed = {
        (c, k) for c, tensors in base.items() for k in tensors if baked[c][k] is not tensors[k]
    }
    assert {f"{c}.{k}" for c, k in changed} == {f"{n}.weight" for n in (QUERY, CONV, TEXT)}
    assert list(baked["unet"]) == list(base["unet"])


def test_several_adapters_are_rounded_once_and_the_loss_is_told() -> None:
    base, one = states(torch.float16), adapter()
    parts = [Part(one, 0.5), Part(one, 0.25, text_weight=1.0)]
    baked, report = bake(base, parts)
    weight = base["unet"][f"{ATTENTION}.to_q.weight"]
    exact = weight.float() + 0.75 * one.modules[QUERY].delta()
    assert torch.equal(baked["unet"][f"{ATTENTION}.to_q.weight"], exact.half())
    text = base["text_encoder"]["text_model.encoder.layers.0.mlp.fc1.weight"]
    there = baked["text_encoder"]["text_model.encoder.layers.0.mlp.fc1.weight"]
    assert torch.equal(there, (text.float() + 1.5 * one.modules[TEXT].delta()).half())
    assert 1e-5 < report.rounding < 0.05
    whole, report = bake(base, parts, torch.float32)
    assert report.rounding < 1e-6
    assert whole["unet"][f"{ATTENTION}.to_q.weight"].dtype == torch.float32


def test_what_was_left_out_is_told_and_can_be_taken_along() -> None:
    base, tuned = states(), states()
    for key in (
        f"{ATTENTION}.to_q.weight",
        f"{ATTENTION}.to_out.0.bias",
        "up_blocks.1.resnets.0.conv1.weight",
        "up_blocks.1.resnets.0.conv1.bias",
        "conv_norm_out.weight",
        "conv_norm_out.bias",
    ):
        tuned["unet"][key] = tuned["unet"][key] + 0.1 * torch.randn(tuned["unet"][key].shape)
    found, report = extract(base, tuned, Extraction(Keep(rank=99)))
    assert set(found.modules) == {QUERY, CONV}
    assert 0 < report.left_out < 0.7
    found, report = extract(base, tuned, Extraction(Keep(rank=99), rest=True))
    assert report.left_out == 0.0
    assert isinstance(found.modules["unet.conv_norm_out"], DiffWeights)
    again, _ = bake(base, [Part(found)])
    for key, tensor in tuned["unet"].items():
        assert torch.allclose(again["unet"][key], tensor, atol=1e-5), key


def test_ranks_per_block() -> None:
    base = states()
    tuned = {
        c: {k: t + 0.1 if t.is_floating_point() else t for k, t in d.items()}
        for c, d in base.items()
    }
    for tensors in tuned.values():
        for key in tensors:
            if tensors[key].ndim > 1 and tensors[key].is_floating_point():
                tensors[key] = tensors[key] + torch.randn(tensors[key].shape)
    options = Extraction(
        Keep(rank=5),
        {"unet": Keep(rank=3), "unet.up_blocks.1": Keep(rank=2), "text_encoder": Keep(energy=0.5)},
    )
    found, report = extract(base, tuned, options)
    assert found.modules[QUERY].rank == 3
    assert found.modules[CONV].rank == 2
    assert report.block_errors["text_encoder.layers.0"] <= 0.5**0.5 + 1e-6
    assert set(report.block_errors) == {
        "unet.down_blocks.0",
        "unet.up_blocks.1",
        "text_encoder.layers.0",
    }


def test_what_cannot_be_extracted_is_said() -> None:
    base = states()
    with pytest.raises(UserError, match="equal"):
        extract(base, states())
    other = states()
    del other["unet"][f"{ATTENTION}.to_q.weight"]
    with pytest.raises(UserError, match="to_q"):
        extract(base, other)
    other["unet"][f"{ATTENTION}.to_q.weight"] = torch.zeros(3, 3)
    with pytest.raises(UserError, match=r"\[16, 12\].*\[3, 3\]"):
        extract(base, other)
    other = states()
    other["unet"]["conv_norm_out.bias"] += 1
    with pytest.raises(UserError, match="--rest"):
        extract(base, other)


def test_what_cannot_be_baked_is_said() -> None:
    base = states()
    stranger = Adapter({"unet.conv_in": weights_for(torch.zeros(4, 4), "lora")})
    with pytest.raises(UserError, match=r"no unet\.conv_in"):
        bake(base, [Part(stranger)])
    wide = Adapter({QUERY: weights_for(torch.zeros(16, 13), "lora")})
    with pytest.raises(UserError, match=r"\[16, 13\]"):
        bake(base, [Part(wide)])
    bias = Adapter({QUERY: DiffWeights(None, torch.ones(16))})
    with pytest.raises(UserError, match="bias"):
        bake(base, [Part(bias)])
