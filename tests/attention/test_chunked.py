"""The chunked kernel is exact: values, gradients, masks, any chunk size."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.attention.chunked import chunked_attention
from dreambooth_core.memory.measure import peak_memory


def inputs(b: int, h: int, n: int, m: int, d: int, e: int, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    source = torch.Generator().manual_seed(b * 1000 + n * 10 + m)
    shapes = ((b, h, n, d), (b, h, m, d), (b, h, m, e))
    return [torch.randn(s, generator=source, dtype=dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("mask", ["none", "bool", "float", "row"])
def test_gradcheck_in_double(mask):
    query, key, value = inputs(2, 2, 5, 7, 3, 4)
    source = torch.Generator().manual_seed(0)
    given_mask = {
        "none": None,
        "bool": torch.rand((2, 1, 5, 7), generator=source) > 0.3,
        "float": torch.randn((2, 2, 5, 7), generator=source, dtype=torch.float64),
        "row": torch.randn((7,), generator=source, dtype=torch.float64),
    }[mask]
    assert torch.autograd.gradcheck(
        lambda q, k, v: chunked_attention(q, k, v, given_mask, chunk=3), (query, key, value)
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    d=st.integers(1, 6),
    chunk=st.integers(1, 10),
    heads=st.integers(1, 3),
    masked=st.booleans(),
)
def test_equals_torch_for_any_sizes(n, m, d, chunk, heads, masked):
    query, key, value = inputs(2, heads, n, m, d, d)
    mask = None
    if masked:
        mask = torch.rand((2, 1, n, m), generator=torch.Generator().manual_seed(n)) > 0.5
        mask[..., 0] = True
    ours = chunked_attention(query, key, value, mask, chunk=chunk)
    theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    assert torch.allclose(ours, theirs, atol=1e-10)
    outer = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).double()
    for a, b in zip(
        torch.autograd.grad(ours, (query, key, value), outer),
        torch.autograd.grad(theirs, (query, key, value), outer),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-10)


def test_scale_is_used():
    query, key, value = inputs(1, 1, 4, 4, 3, 3)
    ours = chunked_attention(query, key, value, scale=0.1)
    theirs = F.scaled_dot_product_attention(query, key, value, scale=0.1)
    assert torch.allclose(ours, theirs)


def test_a_query_without_keys_gets_zeros_and_no_nan():
    query, key, value = inputs(1, 1, 3, 4, 2, 2)
    mask = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    mask[0, 0, 1] = False
    out = chunked_attention(query, key, value, mask, chunk=2)
    assert (out[0, 0, 1] == 0).all()
    gradients = torch.autograd.grad(out.sum(), (query, key, value))
    assert all(g.isfinite().all() for g in gradients)
    assert (gradients[0][0, 0, 1] == 0).all()


def test_large_scores_do_not_overflow():
    query, key, value = inputs(1, 1, 6, 6, 4, 4, torch.float32)
    big = (query * 1e3).detach().requires_grad_()
    ours = chunked_attention(big, key, value, chunk=2)
    assert torch.allclose(ours, F.scaled_dot_product_attention(big, key, value), atol=1e-5)
    assert torch.autograd.grad(ours.sum(), big)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype):
    query, key, value = inputs(1, 2, 40, 33, 8, 8, torch.float32)
    half = [t.detach().to(dtype).requires_grad_() for t in (query, key, value)]
    ours = chunked_attention(half[0], half[1], half[2], chunk=16)
    assert ours.dtype == dtype
    exact = F.scaled_dot_product_attention(query, key, value)
    assert (ours.float() - exact).abs().max() < 0.05
    gradients = torch.autograd.grad(ours.float().sum(), half)
    for a, b in zip(gradients, torch.autograd.grad(exact.sum(), (query, key, value)), strict=True):
        assert a.dtype == dtype
        assert (a.float() - b).norm() < 0.05 * b.norm() + 0.05


def test_autocast_does_not_change_it():
    query, key, value = inputs(1, 1, 4, 4, 3, 3, torch.float32)
    plain = chunked_attention(query, key, value)
    with torch.autocast("cpu", torch.bfloat16):
        inside = chunked_attention(query, key, value)
    assert torch.equal(plain, inside)


def test_a_mask_that_needs_a_gradient_is_refused():
    query, key, value = inputs(1, 1, 2, 2, 2, 2)
    with pytest.raises(ValueError, match="mask"):
        chunked_attention(query, key, value, torch.zeros(2, 2, requires_grad=True))


def test_nothing_quadratic_is_kept_for_the_backward_pass():
    query, key, value = inputs(1, 2, 64, 64, 4, 4, torch.float32)
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        chunked_attention(query, key, value, chunk=16)
    # Query, key, value, output, and one number for each query.
    assert sorted(kept) == [128, 512, 512, 512, 512]


def test_memory_is_linear_in_the_sequence():
    """4096 tokens and 4 heads: the scores alone would be 268 MB."""
    tensors = [torch.randn(1, 4, 4096, 16).requires_grad_() for _ in range(3)]
    outer = torch.randn(1, 4, 4096, 16)
    small = [t[:, :, :64].detach().requires_grad_() for t in tensors]
    torch.autograd.grad(chunked_attention(*small).sum(), small)
    gc.collect()
    with peak_memory(torch.device("cpu")) as peak:
        torch.autograd.grad(chunked_attention(*tensors), tensors, outer)
    assert peak.extra < 60e6
