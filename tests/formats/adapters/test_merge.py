"""Merges: exact where they say so, and as peft's ``add_weighted_adapter`` where that is defined."""

from __future__ import annotations

import json
import logging
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters import sparse
from dreambooth_core.formats.adapters.merge import METHODS, SPARSE, Part, Plan, merge
from dreambooth_core.formats.adapters.model import Adapter, DiffWeights, LoraWeights, Weights
from tests.helpers.adapters import adapter_for, base_of, relative, weights_for

SHAPES = {"unet.conv_in": (12, 8, 3, 3), "unet.mid_block.attentions.0.proj_in": (16, 10)}


def adapter(seed: int, rank: int = 4, alpha: float = 3.0, method: str = "lora") -> Adapter:
    modules: dict[str, Weights] = {
        name: weights_for(torch.ones(shape), method, rank=rank, alpha=alpha, seed=seed * 10 + i)
        for i, (name, shape) in enumerate(SHAPES.items())
    }
    return Adapter(modules, family="sd1")


def dense(parts: list[Part]) -> dict[str, Tensor]:
    """Σ wᵢ ΔWᵢ, written out."""
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, weights in part.adapter.modules.items():
            here = torch.zeros(SHAPES[name]) if name in SHAPES else None
            delta = weights.delta(here) * part.weight_of(name)
            total[name] = total[name] + delta if name in total else delta
    return total


class Two(nn.Module):
    """A model with a convolution and a linear layer, for peft."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 12, 3)
        self.linear = nn.Linear(10, 16)


def through_peft(parts: list[Part], kind: str, **options: Any) -> dict[str, Tensor]:
    """The merged weight changes by peft's own code."""
    model: Any = None
    for i, part in enumerate(parts):
        ranks = {w.rank for w in part.adapter.modules.values()}
        alphas = {w.alpha for w in part.adapter.modules.values()}
        config = peft.LoraConfig(
            r=ranks.pop(), lora_alpha=alphas.pop(), target_modules=["conv", "linear"]
        )
        if model is None:
            model = peft.get_peft_model(Two(), config, adapter_name="0")
        else:
            model.add_adapter(str(i), config)
        inner = model.base_model.model
        for layer, name in zip((inner.conv, inner.linear), SHAPES, strict=True):
            weights = part.adapter.modules[name]
            assert isinstance(weights, LoraWeights)
            layer.lora_A[str(i)].weight.data.copy_(weights.down)
            layer.lora_B[str(i)].weight.data.copy_(weights.up)
    names = [str(i) for i in range(len(parts))]
    model.add_weighted_adapter(names, [p.weight for p in parts], "sum", kind, **options)
    inner = model.base_model.model
    return {
        name: layer.get_delta_weight("sum").detach()
        for layer, name in zip((inner.conv, inner.linear), SHAPES, strict=True)
    }


def changes(merged: Adapter) -> dict[str, Tensor]:
    return {name: weights.delta() for name, weights in merged.modules.items()}


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert relative(actual[name].reshape(tensor.shape), tensor) < tolerance, name


UNEQUAL = [Part(adapter(1), 0.7), Part(adapter(2, rank=6, alpha=9.0), -0.4)]
EQUAL = [Part(adapter(1), 0.7), Part(adapter(2, alpha=9.0), -0.4), Part(adapter(3), 1.5)]


def test_cat_is_the_exact_sum_and_peft_agrees() -> None:
    merged, report = merge(UNEQUAL)
    assert_close(changes(merged), dense(UNEQUAL), 1e-6)
    assert_close(changes(merged), through_peft(UNEQUAL, "cat"), 1e-6)
    assert report.error == 0.0
    # 16 x 10 holds no more than rank 10; the convolution is 12 x 72.
    assert report.ranks == (10,)


def test_cat_does_not_outgrow_the_weight() -> None:
    parts = [Part(adapter(i, rank=8), 1.0) for i in range(4)]
    merged, report = merge(parts)
    assert report.ranks == (10, 12)
    assert_close(changes(merged), dense(parts), 1e-5)


def test_svd_at_full_rank_is_the_sum_and_cut_it_is_the_best() -> None:
    whole, report = merge(UNEQUAL, Plan("svd", rank=10))
    assert_close(changes(whole), dense(UNEQUAL), 1e-5)
    assert report.error < 1e-5
    cut, report = merge(UNEQUAL, Plan("svd", rank=3))
    assert_close(changes(cut), through_peft(UNEQUAL, "svd", svd_rank=3), 1e-4)
    wrong = right = 0.0
    for tensor in dense(UNEQUAL).values():
        values = torch.linalg.svdvals(tensor.flatten(1).double())
        wrong += float(values[3:].square().sum())
        right += float(values.square().sum())
    assert report.error == pytest.approx((wrong / right) ** 0.5, rel=1e-4)
    assert report.truncated == pytest.approx(report.error, rel=1e-4)
    assert report.ranks == (3,)


def test_svd_keeps_the_largest_rank_by_default() -> None:
    assert merge(UNEQUAL, Plan("svd"))[1].ranks == (6,)


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune"])
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_methods_apart_agree_with_peft(method: str, density: float) -> None:
    merged, report = merge(EQUAL, Plan(method, density=density))
    options = {} if method == "linear" else {"density": density}
    assert_close(changes(merged), through_peft(EQUAL, method, **options), 1e-5)
    assert report.error > 0.05
    assert "not the sum" in report.warnings[0]


@pytest.mark.parametrize("sign", ["total", "frequency"])
@pytest.mark.parametrize("method", ["ties_svd", "magnitude_prune_svd"])
def test_methods_with_svd_agree_with_peft(method: str, sign: str) -> None:
    options: dict[str, Any] = {"svd_rank": 5, "density": 0.4}
    if method.startswith("ties"):
        options["majority_sign_method"] = sign
    merged, report = merge(UNEQUAL, Plan(method, rank=5, density=0.4, sign=sign))
    assert_close(changes(merged), through_peft(UNEQUAL, method, **options), 1e-4)
    assert report.truncated > 0
    assert not report.warnings


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_random_methods_agree_with_peft_given_the_same_dice(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[Tensor] = []
    draw = sparse.mask

    def recorded(*given: Any) -> Tensor:
        masks.append(draw(*given))
        return masks[-1]

    monkeypatch.setattr(sparse, "mask", recorded)
    merged, _ = merge(EQUAL, Plan(method, rank=10, density=0.6, seed=3))
    replay = iter(masks)
    monkeypatch.setattr(
        merge_utils,
        "random_pruning",
        lambda tensor, density, rescale: tensor * next(replay) / density,
    )
    options = {"svd_rank": 10} if method.endswith("svd") else {}
    expected = through_peft(EQUAL, method, density=0.6, **options)
    # The convolution's rank is 12 at most, so a cut to 10 is not exact in either.
    assert_close(changes(merged), expected, 1e-4)
    share = sum(float(m.sum()) for m in masks) / sum(m.numel() for m in masks)
    assert share == pytest.approx(0.6, abs=0.05)


def test_seeds_decide_and_order_of_modules_does_not() -> None:
    def run(seed: int, parts: list[Part] = EQUAL) -> dict[str, Tensor]:
        return changes(merge(parts, Plan("dare_linear", seed=seed))[0])

    first, again, other = run(1), run(1), run(2)
    name = "unet.conv_in"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])
    turned = [
        Part(p.adapter.with_modules(dict(reversed(p.adapter.modules.items()))), p.weight)
        for p in EQUAL
    ]
    assert torch.equal(run(1, turned)[name], first[name])


def test_weights_for_text_encoders_and_blocks() -> None:
    part = Part(
        Adapter({}), 0.8, 0.3, {"unet.down_blocks": 0.5, "down_blocks.1": 0.0, "text_encoder_2": 2}
    )
    assert part.weight_of("unet.conv_in") == 0.8
    assert part.weight_of("unet.down_blocks.0.resnets.0.conv1") == 0.4
    assert part.weight_of("unet.down_blocks.1.resnets.0.conv1") == 0.0
    assert part.weight_of("unet.down_blocks.10.resnets.0.conv1") == 0.4
    assert part.weight_of("text_encoder.text_model.encoder.layers.0.mlp.fc1") == 0.3
    assert part.weight_of("text_encoder_2.text_projection") == 0.6


def test_block_weights_reach_the_result() -> None:
    parts = [Part(adapter(1), 1.0, blocks={"mid_block": 0.0}), Part(adapter(2), 0.5)]
    assert_close(changes(merge(parts)[0]), dense(parts), 1e-6)


def test_what_is_taken_away_leaves_nothing_of_itself() -> None:
    one, other = adapter(1), adapter(2, rank=5)
    rest, _ = merge([Part(merge([Part(one), Part(other)])[0]), Part(other, -1.0)])
    assert_close(changes(rest), dense([Part(one)]), 1e-4)


@pytest.mark.parametrize("method", ["loha", "lokr", "diff"])
def test_relatives_merge_exactly_with_lora(method: str) -> None:
    parts = [Part(adapter(1), 0.7), Part(adapter(2, rank=2, method=method), 0.4)]
    merged, _ = merge(parts)
    assert_close(changes(merged), dense(parts), 1e-5)
    kind = DiffWeights if method == "diff" else LoraWeights
    assert all(isinstance(w, kind) for w in merged.modules.values())
    # A convolution stays one, also where a LoHa was stored flat.
    assert merged.modules["unet.conv_in"].delta().shape == (12, 8, 3, 3)


@pytest.mark.parametrize("method", ["dora", "oft"])
def test_what_depends_on_the_base_asks_for_it(method: str) -> None:
    base = base_of("sd1")
    parts = [
        Part(adapter_for("sd1", method, every=7), 0.5),
        Part(adapter_for("sd1", every=7), 0.25),
    ]
    with pytest.raises(UserError, match="--base"):
        merge(parts)
    merged, _ = merge(parts, base=base)
    for name, weights in merged.modules.items():
        expected = sum(
            p.adapter.modules[name].delta(base[name]) * p.weight
            for p in parts
            if name in p.adapter.modules
        )
        assert isinstance(expected, Tensor)
        assert relative(weights.delta(base[name]), expected) < 1e-5


def test_biases_are_added_up() -> None:
    name = "unet.mid_block.attentions.0.proj_in"
    one, other = adapter(1), adapter(2)
    for part, value in ((one, 1.0), (other, 10.0)):
        weights = part.modules[name]
        assert isinstance(weights, LoraWeights)
        weights.bias = torch.full((16,), value)
    norm = "unet.conv_norm_out"
    one.modules[norm] = DiffWeights(torch.ones(12), torch.ones(12), norm=True)
    merged, _ = merge([Part(one, 0.5), Part(other, 2.0)])
    assert merged.modules[name].bias_delta().tolist() == [20.5] * 16  # type: ignore[union-attr]
    assert merged.modules[norm].delta().tolist() == [0.5] * 12


def test_fp16_is_kept_and_its_rounding_reported() -> None:
    parts = [Part(adapter(i).to(torch.float16), 0.7) for i in (1, 2)]
    merged, report = merge(parts)
    assert merged.dtype == torch.float16
    assert 1e-5 < report.error < 1e-3
    assert merge(parts, Plan(dtype=torch.float32))[1].error == 0.0


def test_metadata_is_merged() -> None:
    one, other = adapter(1), adapter(2)
    common = {"ss_base_model_version": "sd_v1", "ss_network_dim": "4"}
    one.metadata = {
        **common,
        "modelspec.trigger_phrase": "sks dog",
        "ss_tag_frequency": json.dumps({"1_a": {"dog": 2}}),
    }
    other.metadata = {
        **common,
        "modelspec.trigger_phrase": "crochet",
        "ss_tag_frequency": json.dumps({"1_a": {"dog": 1, "wool": 3}}),
    }
    parts = [Part(one, 1.0, name="dog"), Part(other, 1.05, name="crochet")]
    said = merge(parts)[0].metadata
    assert said["modelspec.trigger_phrase"] == "sks dog, crochet"
    assert json.loads(said["ss_tag_frequency"]) == {"1_a": {"dog": 3, "wool": 3}}
    assert said["ss_base_model_version"] == "sd_v1"
    assert "ss_network_dim" not in said
    assert json.loads(said["dreambooth_merge"])["adapters"][1] == {
        "name": "crochet",
        "weight": 1.05,
    }


def test_what_cannot_be_merged_is_said() -> None:
    with pytest.raises(UserError, match="nothing to merge"):
        merge([])
    with pytest.raises(UserError, match="no merge method"):
        Plan("average")
    for bad in ({"density": 0.0}, {"density": 1.1}, {"rank": 0}, {"sign": "any"}):
        with pytest.raises(UserError):
            Plan("ties_svd", **bad)  # type: ignore[arg-type]
    for method in ("linear", *SPARSE):
        with pytest.raises(UserError, match=r"ranks \[4, 6\]"):
            merge(UNEQUAL, Plan(method))
    other = adapter(1)
    other.family = "sdxl"
    with pytest.raises(UserError, match="sd1, sdxl"):
        merge([UNEQUAL[0], Part(other)])
    wide = adapter(1).with_modules({"unet.conv_in": weights_for(torch.ones(12, 4, 3, 3), "lora")})
    with pytest.raises(UserError, match="different sizes"):
        merge([UNEQUAL[0], Part(wide)])


def test_linear_warns_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        merge(EQUAL, Plan("linear"))
    assert "not the sum" in " ".join(caplog.text.split())


@settings(max_examples=40, deadline=None)
@given(
    specs=st.lists(
        st.tuples(
            st.integers(1, 7),
            st.floats(0.25, 32, width=16),
            st.floats(-2, 2, width=16).filter(lambda w: abs(w) > 0.05),
            st.sets(st.sampled_from(sorted(SHAPES)), min_size=1),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_cat_is_exact_for_any_ranks_alphas_and_weights(
    specs: list[tuple[int, float, float, set[str]]],
) -> None:
    """No module is lost, none doubled, and the sum is the sum."""
    parts = []
    for i, (rank, alpha, weight, names) in enumerate(specs):
        one = adapter(i, rank=rank, alpha=alpha)
        parts.append(Part(one.with_modules({n: one.modules[n] for n in sorted(names)}), weight))
    merged, report = merge(parts)
    expected = dense(parts)
    assert set(merged.modules) == set(expected)
    scale = {
        n: sum(
            float(p.adapter.modules[n].delta().norm()) * abs(p.weight)
            for p in parts
            if n in p.adapter.modules
        )
        for n in expected
    }
    for name, weights in merged.modules.items():
        assert float((weights.delta() - expected[name]).norm()) < 2e-6 * scale[name]
    assert report.modules == len(expected)


@settings(max_examples=30, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    rank=st.integers(1, 12),
    method=st.sampled_from([m for m in METHODS if m.endswith("svd")]),
)
def test_any_svd_has_the_rank_that_was_asked_for(ranks: list[int], rank: int, method: str) -> None:
    parts = [Part(adapter(i, rank=r), 0.5) for i, r in enumerate(ranks)]
    merged, report = merge(parts, Plan(method, rank=rank))
    assert set(merged.modules) == set(SHAPES)
    assert all(w.rank <= rank for w in merged.modules.values())
    assert all(w.alpha == w.rank for w in merged.modules.values())
    assert 0 <= report.truncated <= 1
