"""What each method does to a weight, against formulas written out in another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.model import (
    DiffWeights,
    LohaWeights,
    LokrWeights,
    LoraWeights,
    OftWeights,
    block_of,
)
from tests.helpers.adapters import METHODS, relative, weights_for


@pytest.fixture
def linear() -> Tensor:
    return torch.randn(16, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def conv() -> Tensor:
    return torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(2))


def test_lora_on_a_convolution_is_two_convolutions(conv: Tensor) -> None:
    lora = weights_for(conv, "lora", rank=4, alpha=2.0)
    assert isinstance(lora, LoraWeights)
    x = torch.randn(2, 8, 5, 5)
    functional = torch.nn.functional
    two = functional.conv2d(functional.conv2d(x, lora.down, padding=1), lora.up) * (2.0 / 4)
    assert relative(functional.conv2d(x, lora.delta(conv), padding=1), two) < 1e-6


def test_tucker_is_three_convolutions(conv: Tensor) -> None:
    down, mid, up = torch.randn(4, 8, 1, 1), torch.randn(5, 4, 3, 3), torch.randn(16, 5, 1, 1)
    lora = LoraWeights(down, up, alpha=4.0, mid=mid)
    x = torch.randn(1, 8, 6, 6)
    functional = torch.nn.functional
    three = functional.conv2d(functional.conv2d(functional.conv2d(x, down), mid, padding=1), up)
    assert lora.rank == 4
    assert relative(functional.conv2d(x, lora.delta(conv), padding=1), three) < 1e-5


def test_dora_sets_the_length_of_every_row(linear: Tensor) -> None:
    dora = weights_for(linear, "dora")
    changed = linear + dora.delta(linear)
    lengths = dora.dora_scale.reshape(-1)  # type: ignore[attr-defined]
    assert torch.allclose(changed.norm(dim=1), lengths, rtol=1e-5)
    with pytest.raises(UserError, match="depends on the base"):
        dora.delta()


def test_dora_per_input_sets_the_length_of_every_column(linear: Tensor) -> None:
    plain = weights_for(linear, "lora")
    assert isinstance(plain, LoraWeights)
    scale = torch.rand(1, 12) + 0.5
    dora = LoraWeights(plain.down, plain.up, plain.alpha, dora_scale=scale)
    assert torch.allclose((linear + dora.delta(linear)).norm(dim=0), scale[0], rtol=1e-5)


def test_loha_is_a_product_of_two_products(linear: Tensor) -> None:
    loha = weights_for(linear, "loha", rank=3, alpha=1.5)
    assert isinstance(loha, LohaWeights)
    expected = (loha.w1_a @ loha.w1_b) * (loha.w2_a @ loha.w2_b) * 0.5
    assert relative(loha.delta(), expected) < 1e-6


def test_lokr_is_made_of_blocks(linear: Tensor) -> None:
    lokr = weights_for(linear, "lokr", rank=3, alpha=1.5)
    assert isinstance(lokr, LokrWeights)
    small = lokr.w2_a @ lokr.w2_b * 0.5  # type: ignore[operator]
    delta = lokr.delta()
    for i in range(2):
        for j in range(2):
            block = delta[i * 8 : (i + 1) * 8, j * 6 : (j + 1) * 6]
            assert relative(block, small * lokr.w1[i, j]) < 1e-6  # type: ignore[index]


def test_alpha_means_nothing_to_a_full_lokr() -> None:
    first, second = torch.randn(2, 3), torch.randn(4, 2)
    one, other = (LokrWeights(w1=first, w2=second, alpha=a) for a in (1.0, 64.0))
    assert torch.equal(one.delta(), torch.kron(first, second))
    assert torch.equal(one.delta(), other.delta())


def test_oft_turns_outputs_and_keeps_lengths(linear: Tensor) -> None:
    oft = weights_for(linear, "oft")
    assert isinstance(oft, OftWeights)
    changed = linear + oft.delta(linear)
    for block in range(4):
        rows = slice(block * 4, block * 4 + 4)
        q = oft.blocks[block] - oft.blocks[block].t()
        r = (torch.eye(4) + q) @ torch.linalg.inv(torch.eye(4) - q)
        assert torch.allclose(changed[rows], r.t() @ linear[rows], atol=1e-5)
    assert torch.allclose(changed.norm(dim=0), linear.norm(dim=0), rtol=1e-5)


def test_the_norm_of_oft_is_bounded_by_alpha(linear: Tensor) -> None:
    blocks = torch.randn(4, 4, 4)
    tight = OftWeights(blocks, alpha=1e-3).delta(linear)
    assert float(tight.norm()) < 2 * 1e-3 * 16 * float(linear.norm())
    assert torch.equal(
        OftWeights(blocks, alpha=1e3).delta(linear), OftWeights(blocks).delta(linear)
    )


def test_butterfly_oft_is_orthogonal_and_not_block_diagonal() -> None:
    weight = torch.eye(16)
    boft = OftWeights(torch.randn(2, 4, 4, 4) * 0.3)
    turned = weight + boft.delta(weight)
    assert torch.allclose(turned @ turned.t(), torch.eye(16), atol=1e-5)
    assert float(turned[:4, 4:].abs().max()) > 1e-3


def test_a_shared_block_turns_all_inputs(linear: Tensor) -> None:
    one = torch.randn(1, 4, 4) * 0.2
    shared = OftWeights(one, side="in").delta(linear)
    assert torch.equal(shared, OftWeights(one.repeat(3, 1, 1), side="in").delta(linear))


@pytest.mark.parametrize("method", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("rank", [1, 3])
def test_factors_multiply_to_the_change(method: str, rank: int, linear: Tensor) -> None:
    weights = weights_for(linear, method, rank=rank)
    factors = weights.factors()
    assert factors is not None
    up, down, shape = factors
    assert relative((up @ down).reshape(shape), weights.delta(linear).reshape(shape)) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_the_change_has_the_shape_of_the_base(method: str, linear: Tensor, conv: Tensor) -> None:
    for base in (linear, conv, conv[:, :, :1, :1]):
        delta = weights_for(base, method).delta(base)
        assert delta.shape == base.shape
        assert delta.dtype == torch.float32
        assert float(delta.abs().max()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_fp32(method: str, linear: Tensor) -> None:
    weights = weights_for(linear, method)
    half = weights.to(torch.float16)
    assert half.dtype == torch.float16
    assert relative(half.delta(linear), weights.delta(linear)) < 3e-3
    again = half.to(torch.float32)
    assert relative(again.delta(linear), half.delta(linear)) < 1e-6


def test_another_base_is_refused(linear: Tensor) -> None:
    with pytest.raises(UserError, match=r"\[16, 12\].*\[16, 16\]"):
        weights_for(linear, "lora").delta(torch.zeros(16, 16))
    with pytest.raises(UserError, match="do not fit"):
        weights_for(linear, "oft").delta(torch.zeros(18, 12))


def test_changes_of_biases_are_kept() -> None:
    diff = DiffWeights(None, torch.ones(5))
    assert diff.bias_delta().tolist() == [1.0] * 5  # type: ignore[union-attr]
    assert set(diff.tensors()) == {"diff_b"}
    assert not diff.delta(torch.zeros(5, 3)).any()


def test_blocks() -> None:
    assert block_of("unet.down_blocks.1.attentions.0.proj_in") == "unet.down_blocks.1"
    assert block_of("unet.mid_block.resnets.0.conv1") == "unet.mid_block"
    assert block_of("unet.conv_in") == "unet.other"
    assert block_of("text_encoder.text_model.encoder.layers.3.mlp.fc1") == "text_encoder.layers.3"
    assert block_of("text_encoder_2.text_projection") == "text_encoder_2.other"
