"""Products of two thin matrices: their norms, sums and best approximations of lower rank.

A LoRA's ΔW = up · down is never multiplied out here. Its singular values come from the QR
factors: up = Q₁R₁ and downᵀ = Q₂R₂, so ΔW = Q₁ (R₁R₂ᵀ) Q₂ᵀ, and the middle is rank x rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.model import LoraWeights


@dataclass(frozen=True)
class Keep:
    """How much of a matrix to keep: a rank, a share of the energy (Σσ²), or the lesser of both."""

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"a rank is at least 1, not {self.rank}")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UserError(f"a share of the energy is between 0 and 1, not {self.energy:g}")

    def count(self, values: Tensor, total: float) -> int:
        """How many of the singular ``values`` (falling) to keep, at least one.

        ``total``: Σσ² of the whole matrix, also where ``values`` are only its largest.
        """
        count = len(values) if self.rank is None else min(self.rank, len(values))
        if self.energy is not None and len(values):
            squares = values.double().square().cumsum(0)
            enough = int((squares < self.energy * total * (1 - 1e-12)).sum()) + 1
            count = min(count, enough)
        return max(1, count)


@dataclass(frozen=True)
class Reduced:
    """A low-rank approximation and what it lost."""

    up: Tensor
    """[out, rank], fp32, the square roots of the singular values inside."""
    down: Tensor
    """[rank, in * kernel], fp32, likewise."""
    lost: float
    """Σσ² of what was cut off."""
    total: float
    """Σσ² of the whole."""

    @property
    def error(self) -> float:
        """Relative error in the Frobenius norm."""
        return root(self.lost, self.total)


def squares(tensor: Tensor) -> float:
    """‖tensor‖² in the Frobenius norm, in double."""
    return float(tensor.double().square().sum())


def root(part: float, whole: float) -> float:
    """The share of one norm in another, from their squares; 0 of nothing."""
    return math.sqrt(max(part, 0.0) / whole) if whole else 0.0


def energy(up: Tensor, down: Tensor) -> float:
    """‖up · down‖² in the Frobenius norm, in double, through the smaller of the product and the
    Gram matrices."""
    up, down = up.double(), down.double()
    if up.shape[0] * down.shape[1] < up.shape[1] ** 2:
        return squares(up @ down)
    return max(0.0, float(((up.t() @ up) * (down @ down.t()).t()).sum()))


def concatenate(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The exact sum of products: Σ upᵢ · downᵢ = [up₁ up₂ …] · [down₁; down₂; …]."""
    return torch.cat([up for up, _ in pairs], dim=1), torch.cat([d for _, d in pairs], dim=0)


def require_finite(*tensors: Tensor) -> None:
    """Raises ``UserError`` if a weight change has NaN or infinity: it has no singular values."""
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise UserError(
            "the weight change has NaN or infinity: its numbers are too large",
            do="Use smaller weights, or train the adapter again.",
        )


def reduce_product(up: Tensor, down: Tensor, keep: Keep) -> Reduced:
    """The best approximation of ``up · down`` within ``keep`` (Eckart, Young 1936)."""
    require_finite(up, down)
    q1, r1 = torch.linalg.qr(up.float())
    q2, r2 = torch.linalg.qr(down.float().t())
    u, s, vh = torch.linalg.svd(r1.double() @ r2.double().t(), full_matrices=False)
    return _cut(q1.double() @ u, s, vh @ q2.double().t(), keep, squares(s))


def reduce_matrix(matrix: Tensor, keep: Keep, seed: int = 0) -> Reduced:
    """The best approximation of a dense matrix [out, in] within ``keep``.

    A small rank of a large matrix is found by a randomised range finder with power iterations
    (Halko, Martinsson, Tropp 2011, arXiv:0909.4061), all else by the full decomposition.
    """
    matrix = matrix.float()
    require_finite(matrix)
    smaller = min(matrix.shape)
    if keep.rank is None or smaller <= 256 or keep.rank * 5 >= smaller:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return _cut(u, s, vh, keep, squares(s))
    u, s, vh = _randomised(matrix, keep.rank, seed)
    found = _cut(u, s, vh, keep, squares(matrix))
    # Taken from the residual: what is left of a difference of two sums is mostly rounding.
    return replace(found, lost=squares(matrix - found.up @ found.down))


def as_lora(
    up: Tensor, down: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> LoraWeights:
    """A LoRA of the product, scale 1 (alpha = rank); ``shape`` is that of ΔW."""
    rank = down.shape[0]
    down = down.reshape(rank, *shape[1:])
    up = up.reshape(up.shape[0], rank, *[1] * (len(shape) - 2))
    return LoraWeights(down.to(dtype).contiguous(), up.to(dtype).contiguous(), float(rank))


def _cut(u: Tensor, s: Tensor, vh: Tensor, keep: Keep, total: float) -> Reduced:
    count = keep.count(s, total)
    half = s[:count].sqrt()
    up, down = (u[:, :count] * half).float(), (half[:, None] * vh[:count]).float()
    return Reduced(up, down, squares(s[count:]), total)


def _randomised(matrix: Tensor, rank: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    transposed = matrix.shape[0] < matrix.shape[1]
    tall = matrix.t() if transposed else matrix
    width = min(rank + max(16, rank // 2), tall.shape[1])
    generator = torch.Generator().manual_seed(seed)
    probe = torch.randn(tall.shape[1], width, generator=generator).to(tall.device)
    basis = torch.linalg.qr(tall @ probe)[0]
    for _ in range(4):
        basis = torch.linalg.qr(tall.t() @ basis)[0]
        basis = torch.linalg.qr(tall @ basis)[0]
    u, s, vh = torch.linalg.svd(basis.t() @ tall, full_matrices=False)
    u = basis @ u
    return (vh.t(), s, u.t()) if transposed else (u, s, vh)
