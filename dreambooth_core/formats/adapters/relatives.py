"""LoRA's relatives: LoHa, LoKr and OFT, as LyCORIS and peft store them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats.adapters.weights import (
    COMMON,
    Factors,
    Weights,
    check_magnitudes,
    check_size,
    expect,
    finish,
)

MAX_PRODUCT = 64_000_000
"""Numbers in the factors of a LoHa's product, whose rank is the square of the LoHa's."""


@dataclass(eq=False)
class LohaWeights(Weights):
    """``ΔW = alpha / rank · (w1_a · w1_b) ∘ (w2_a · w2_b)`` (FedPara, arXiv:2108.06098).

    Shapes: ``w*_a [out, rank]``, ``w*_b [rank, in * kernel]``. Tucker form, with
    ``t* [rank, rank, h, w]``: ``w*_a [rank, out]``, ``w*_b [rank, in]``.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None
    dora_scale: Tensor | None = None
    method: ClassVar[str] = "loha"
    TAILS: ClassVar[Mapping[str, str]] = {
        **{name: f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
        **COMMON,
    }

    @property
    def rank(self) -> int:
        return int(self.w1_b.shape[0])

    def check(self) -> None:
        if (self.t1 is None) != (self.t2 is None):
            raise UserError("it has one of two Tucker cores")
        first = product_shape("hada_w1", self.w1_a, self.w1_b, self.t1)
        second = product_shape("hada_w2", self.w2_a, self.w2_b, self.t2)
        if first != second or self.w2_b.shape[0] != self.rank:
            raise UserError(f"its two products have shapes {list(first)} and {list(second)}")
        check_size(self.rank, *first)
        check_magnitudes(self.dora_scale, first[0], first[1])

    def delta(self, base: Tensor | None = None) -> Tensor:
        first = product(self.w1_a, self.w1_b, self.t1)
        second = product(self.w2_a, self.w2_b, self.t2)
        return finish(first * second * (self.alpha / self.rank), base, self.dora_scale)

    def factors(self) -> Factors | None:
        """A Hadamard product of ranks r and s is a product of rank r·s, row by row."""
        if self.needs_base or self.t1 is not None or self.t2 is not None:
            return None
        if self.rank**2 * (self.w1_a.shape[0] + self.w1_b.shape[1]) > MAX_PRODUCT:
            return None
        up = torch.einsum("or,os->ors", self.w1_a.float(), self.w2_a.float()).flatten(1)
        down = torch.einsum("ri,si->rsi", self.w1_b.float(), self.w2_b.float()).flatten(0, 1)
        return up * (self.alpha / self.rank), down, (up.shape[0], down.shape[1])


@dataclass(eq=False)
class LokrWeights(Weights):
    """``ΔW = scale · w1 ⊗ w2`` (Kronecker product, LyCORIS, arXiv:2309.14859).

    Each factor is full (``w1 [a, b]``, ``w2 [c, d]`` or ``[c, d, h, w]``) or low rank
    (``w*_a · w*_b``, for ``w2`` also with the Tucker core ``t2``). The scale is alpha / rank if
    a factor is low rank, and 1 if both are full: alpha then means nothing, as in the hosts.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    alpha: float = 1.0
    dora_scale: Tensor | None = None
    method: ClassVar[str] = "lokr"
    TAILS: ClassVar[Mapping[str, str]] = {
        **{name: f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
        **COMMON,
    }

    @property
    def rank(self) -> int:
        thin = self.w1_b if self.w2_b is None else self.w2_b
        return 0 if thin is None else int(thin.shape[0])

    @property
    def scale(self) -> float:
        """What the Kronecker product is multiplied by."""
        return self.alpha / self.rank if self.rank else 1.0

    def check(self) -> None:
        a, b = factor_shape("lokr_w1", self.w1, self.w1_a, self.w1_b, None)
        c, d, *kernel = factor_shape("lokr_w2", self.w2, self.w2_a, self.w2_b, self.t2)
        check_size(self.rank, a * c, b * d, *kernel)
        check_magnitudes(self.dora_scale, a * c, b * d)

    def first(self) -> Tensor:
        """The left factor [a, b] in fp32."""
        return _full(self.w1, self.w1_a, self.w1_b, None)

    def second(self) -> Tensor:
        """The right factor [c, d] or [c, d, h, w] in fp32."""
        return _full(self.w2, self.w2_a, self.w2_b, self.t2)

    def delta(self, base: Tensor | None = None) -> Tensor:
        first, second = self.first(), self.second()
        first = first.reshape(*first.shape, *[1] * (second.ndim - 2))
        return finish(torch.kron(first, second.contiguous()) * self.scale, base, self.dora_scale)

    def factors(self) -> Factors | None:
        """``(p q) ⊗ (u v) = (p ⊗ u)(q ⊗ v)``; a full factor is its own product with I."""
        if self.needs_base or self.t2 is not None or (self.w2 is not None and self.w2.ndim > 2):
            return None
        p, q = _thin(self.first(), self.w1_a, self.w1_b)
        u, v = _thin(self.second(), self.w2_a, self.w2_b)
        up, down = torch.kron(p, u) * self.scale, torch.kron(q, v)
        return up, down, (up.shape[0], down.shape[1])


@dataclass(eq=False)
class OftWeights(Weights):
    """Orthogonal fine-tuning: W is rotated in blocks (Qiu et al. 2023, arXiv:2306.07280).

    ``Q = blocks - blocksᵀ``, ``R = (I + Q)(I - Q)⁻¹`` (Cayley). ``blocks [n, s, s]``; one block
    serves all if n is 1; ``[m, n, s, s]`` is the butterfly form (BOFT).

    ``side="out"`` (kohya, LyCORIS) turns the outputs, W' = Rᵀ W, with an optional ``rescale``
    [out, 1, …]; ``side="in"`` (peft) turns the inputs, W' = W Rᵀ. ``alpha`` > 0 bounds the
    norm of Q by alpha · out. ``terms`` > 0: R is the series that peft uses for the inverse,
    cut after that many terms.
    """

    blocks: Tensor
    alpha: float = 0.0
    rescale: Tensor | None = None
    side: str = "out"
    terms: int = 0
    method: ClassVar[str] = "oft"
    needs_base: ClassVar[bool] = True
    TAILS: ClassVar[Mapping[str, str]] = {
        "blocks": "oft_blocks",
        "alpha": "alpha",
        "rescale": "rescale",
    }

    @property
    def rank(self) -> int:
        """The size of a block."""
        return int(self.blocks.shape[-1])

    def check(self) -> None:
        shape = self.blocks.shape
        if self.blocks.ndim not in (3, 4) or shape[-1] != shape[-2]:
            raise UserError(f"oft_blocks has shape {list(shape)}, and holds no square blocks")
        check_size(self.rank, *shape)
        if self.rescale is not None and self.rescale.numel() != max(self.rescale.shape, default=0):
            raise UserError(f"rescale has shape {list(self.rescale.shape)}, and is not a vector")

    def rotation(self, outputs: int) -> Tensor:
        """R, of the shape of ``blocks``, in fp32."""
        blocks = self.blocks.float()
        q = blocks - blocks.transpose(-1, -2)
        limit = self.alpha * outputs
        if limit > 0:
            norm = float(q.norm()) + 1e-8
            q = q * min(1.0, limit / norm)
        eye = torch.eye(q.shape[-1], device=q.device)
        if not self.terms:
            # X (I - Q) = I + Q, solved in double: the inverse is ill-conditioned for large Q.
            left = (eye - q).double().transpose(-1, -2)
            right = (eye + q).double().transpose(-1, -2)
            return torch.linalg.solve(left, right).transpose(-1, -2).float()
        # peft's series: I + 2Q + 2Q² + … + Qⁿ, where n is at least 3 once there are three terms.
        highest = self.terms - 1 if self.terms < 3 else max(3, self.terms - 1)
        total, power = eye.expand_as(q).clone(), q
        for exponent in range(1, highest + 1):
            total = total + power * (1.0 if exponent == highest and highest > 1 else 2.0)
            power = power @ q
        return total

    def delta(self, base: Tensor | None = None) -> Tensor:
        if base is None:
            raise UserError(
                "the weight change of an OFT adapter depends on the base model",
                do="Give the base that it was trained on.",
            )
        weight = base.float()
        rows = weight.shape[0] if self.side == "out" else weight[0].numel()
        check_blocks(self.blocks, rows)
        r = self.rotation(weight.shape[0])
        if r.ndim == 4:
            turned = _butterfly(r, weight)
        elif self.side == "out":
            turned = _turn(r.transpose(-1, -2), weight.flatten(1)).reshape(weight.shape)
        else:
            turned = _turn(r, weight.flatten(1).t()).t().reshape(weight.shape)
        if self.rescale is not None:
            if self.rescale.numel() != weight.shape[0]:
                raise UserError(
                    f"OFT rescales {self.rescale.numel()} outputs, the base has {weight.shape[0]}",
                    do="Use an adapter that was made for this base.",
                )
            turned = turned * self.rescale.float().reshape(-1, *[1] * (weight.ndim - 1))
        return turned - weight


def product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """``a · b``, or with a Tucker core [r, r, h, w] the tensor [out, in, h, w], in fp32."""
    if core is None:
        return a.float() @ b.float()
    return torch.einsum("ij...,jr,ip->pr...", core.float(), b.float(), a.float())


def product_shape(name: str, a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...]:
    """The shape of :func:`product`. Raises ``UserError`` if there is none."""
    if core is None:
        expect(f"{name}_a", a, None, None)
        expect(f"{name}_b", b, a.shape[1], None)
        return int(a.shape[0]), int(b.shape[1])
    expect(f"the Tucker core of {name}", core, None, None, None, None)
    expect(f"{name}_a", a, core.shape[0], None)
    expect(f"{name}_b", b, core.shape[1], None)
    return int(a.shape[1]), int(b.shape[1]), *core.shape[2:]


def factor_shape(
    name: str, full: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> tuple[int, ...]:
    """The shape of a LoKr's factor. Raises ``UserError``: missing, stored twice, not a product."""
    if full is not None:
        if a is not None or b is not None or core is not None:
            raise UserError(f"{name} is stored both in full and as a product")
        expect(name, full, *[None] * (4 if full.ndim == 4 and name == "lokr_w2" else 2))
        return tuple(full.shape)
    if a is None or b is None:
        raise UserError(f"{name} is missing or half of it is", do="The file is incomplete.")
    return product_shape(name, a, b, core)


def _full(full: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None) -> Tensor:
    if full is not None:
        return full.float()
    assert a is not None and b is not None
    return product(a, b, core)


def _thin(full: Tensor, a: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    if a is not None and b is not None and a.shape[1] < min(full.shape):
        return a.float(), b.float()
    if full.shape[0] <= full.shape[1]:
        return torch.eye(full.shape[0], device=full.device), full
    return full, torch.eye(full.shape[1], device=full.device)


def check_blocks(blocks: Tensor, rows: int) -> None:
    """Raises ``UserError`` unless OFT or BOFT blocks make one rotation of ``rows`` numbers."""
    size, number = int(blocks.shape[-1]), int(blocks.shape[-3])
    count = rows // size
    fits = count * size == rows and number in ((1, count) if blocks.ndim == 3 else (count,))
    if fits and blocks.ndim == 4:
        stages = int(blocks.shape[0])
        fits = size % 2 == 0 and rows % (2 ** min(stages, 63) * (size // 2)) == 0
    if not fits:
        raise UserError(
            f"OFT blocks of shape {list(blocks.shape)} do not fit a weight with {rows} rows",
            do="Use an adapter that was made for this base.",
        )


def _turn(r: Tensor, rows: Tensor) -> Tensor:
    """Block-diagonal R [n, s, s] times a matrix [n * s, columns]."""
    size = r.shape[-1]
    return (r @ rows.reshape(rows.shape[0] // size, size, -1)).reshape(rows.shape)


def _butterfly(r: Tensor, weight: Tensor) -> Tensor:
    """BOFT: a product of block-diagonal rotations under butterfly permutations."""
    stages, _, size, _ = r.shape
    rows = weight.flatten(1)
    for stage in range(stages):
        stride = 2**stage * (size // 2)
        shape = (rows.shape[0] // (2 * stride), 2, stride, rows.shape[1])
        mixed = rows.reshape(shape).transpose(1, 2).reshape(-1, size, rows.shape[1])
        turned = (r[stage] @ mixed).reshape(shape[0], stride, 2, rows.shape[1])
        rows = turned.transpose(1, 2).reshape(math.prod(shape[:3]), rows.shape[1])
    return rows.reshape(weight.shape)
