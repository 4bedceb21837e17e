"""Low-rank products: norms, best approximations, and how much is kept."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.lowrank import (
    Keep,
    as_lora,
    concatenate,
    energy,
    reduce_matrix,
    reduce_product,
)
from tests.helpers.adapters import relative


def thin(out: int, width: int, rank: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(out, rank, generator=generator),
        torch.randn(rank, width, generator=generator),
    )


@settings(max_examples=40, deadline=None)
@given(
    out=st.integers(1, 20),
    width=st.integers(1, 20),
    rank=st.integers(1, 24),
    keep=st.integers(1, 24),
)
def test_the_product_way_finds_what_the_dense_way_finds(
    out: int, width: int, rank: int, keep: int
) -> None:
    up, down = thin(out, width, rank)
    dense = up @ down
    assert energy(up, down) == pytest.approx(float(dense.double().square().sum()), rel=1e-5)
    reduced = reduce_product(up, down, Keep(keep))
    values = torch.linalg.svdvals(dense.double())
    lost = float(values[keep:].square().sum())
    found = float((reduced.up @ reduced.down - dense).double().square().sum())
    whole = float(values.square().sum())
    assert found == pytest.approx(lost, rel=1e-3, abs=1e-9 * whole)
    assert reduced.error == pytest.approx((lost / whole) ** 0.5, rel=1e-3, abs=1e-5)
    assert reduced.down.shape[0] <= min(keep, out, width, rank)


def test_energy_decides_the_rank() -> None:
    matrix = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0]))
    for share, rank in ((0.6, 1), (9 / 14, 1), (0.65, 2), (13 / 14, 2), (0.95, 3), (1.0, 3)):
        for reduced in (
            reduce_matrix(matrix, Keep(energy=share)),
            reduce_product(matrix, torch.eye(4), Keep(energy=share)),
        ):
            assert reduced.down.shape[0] == rank, share
            assert reduced.error**2 <= 1 - share + 1e-6
    assert reduce_matrix(matrix, Keep(rank=1, energy=0.99)).down.shape[0] == 1


def test_zero_is_kept_as_rank_one() -> None:
    reduced = reduce_matrix(torch.zeros(5, 4), Keep(rank=3, energy=0.9))
    assert not (reduced.up @ reduced.down).any()
    assert reduced.error == 0.0


@pytest.mark.parametrize("shape", [(300, 280), (270, 400)])
def test_the_quick_way_is_nearly_the_best(shape: tuple[int, int]) -> None:
    """Singular values that fall slowly, as in real weight changes."""
    up, down = thin(*shape, 270)
    matrix = (up * torch.linspace(1, 0, 270).pow(4)) @ down
    quick = reduce_matrix(matrix, Keep(rank=16), seed=1)
    values = torch.linalg.svdvals(matrix)
    best = float(values[16:].norm() / values.norm())
    assert quick.error == pytest.approx(best, rel=0.01)
    assert relative(quick.up @ quick.down, matrix) == pytest.approx(quick.error, rel=1e-3)
    again = reduce_matrix(matrix, Keep(rank=16), seed=1)
    assert torch.equal(quick.up, again.up)


def test_sums_are_exact() -> None:
    pairs = [thin(6, 5, r, seed=r) for r in (1, 2, 3)]
    up, down = concatenate(pairs)
    assert torch.allclose(up @ down, sum(u @ d for u, d in pairs), atol=1e-5)  # type: ignore


def test_a_lora_of_a_convolution() -> None:
    up, down = thin(6, 4 * 9, 3)
    lora = as_lora(up, down, (6, 4, 3, 3))
    assert lora.down.shape == (3, 4, 3, 3)
    assert lora.up.shape == (6, 3, 1, 1)
    assert torch.allclose(lora.delta(), (up @ down).reshape(6, 4, 3, 3))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_impossible_wishes(bad: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Keep(**bad)  # type: ignore[arg-type]
