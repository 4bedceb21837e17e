"""What one module of an adapter holds, and the weight change it makes.

Every kind answers the same questions: ``delta(base)`` is the change ΔW in fp32, ``factors()``
is the same change as a product of two thin matrices where that is exact and needs no base,
``tensors()`` are the tensors under the tails that kohya and LyCORIS write.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor

from dreambooth_core.errors import UserError

Factors = tuple[Tensor, Tensor, tuple[int, ...]]
"""``(up [out, rank], down [rank, in * kernel], shape of ΔW)``, fp32, with the scale inside."""


MAX_RANK = 4096
"""Of one module; the sums over it are as large as its square."""
MAX_NUMBERS = 500_000_000
"""Of one weight; the largest that adapters change, Flux.2 dev's joined one, has 340 million."""

MAX_CHANGE = 1e30
"""Far beyond any weight, and far below what fp32 holds."""


COMMON = {"alpha": "alpha", "dora_scale": "dora_scale"}
"""What all low-rank methods share, see :attr:`Weights.TAILS`."""


class Weights(ABC):
    """The part of an adapter that changes one module of the base."""

    method: ClassVar[str]
    TAILS: ClassVar[Mapping[str, str]]
    """By field, the tail under which kohya and LyCORIS store it."""
    alpha: float
    dora_scale: Tensor | None = None
    """DoRA's magnitudes, ``[out, 1, …]`` (per output) or ``[1, in, …]`` (per input)."""
    bias: Tensor | None = None
    """A change of the module's bias [out], stored as it is (``diff_b``)."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """The inner dimension; 0 where the method has none."""

    @property
    def needs_base(self) -> bool:
        """Whether ΔW depends on the weight that it changes."""
        return self.dora_scale is not None

    @property
    def is_plain(self) -> bool:
        """Whether it is a LoRA and nothing more: what every program reads without loss."""
        return False

    @abstractmethod
    def check(self) -> None:
        """Whether the tensors have shapes that make one weight change.

        Raises:
            UserError: they have not, or the change would be larger than any weight is.
        """

    @abstractmethod
    def delta(self, base: Tensor | None = None) -> Tensor:
        """ΔW in fp32, in the shape of ``base`` where it is given.

        Raises:
            UserError: the base is needed and missing, or has another size.
        """

    def bias_delta(self) -> Tensor | None:
        """The change of the module's bias in fp32, shape [out]; most methods have none."""
        return None if self.bias is None else self.bias.float()

    def factors(self) -> Factors | None:
        """ΔW as a low-rank product, exact; ``None`` where there is no such thing."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by kohya's tails, ``alpha`` among them."""
        held = {tail: getattr(self, name) for name, tail in self.TAILS.items()}
        return {
            tail: value if isinstance(value, Tensor) else torch.tensor(float(value))
            for tail, value in held.items()
            if value is not None
        }

    def check_numbers(self) -> None:
        """Whether all numbers are numbers, and so small that their products are too.

        Raises:
            UserError: NaN, infinity, or a ΔW that would overflow.
        """
        product = 1.0
        for tail, tensor in self.tensors().items():
            if not bool(tensor.isfinite().all()):
                kind = str(tensor.dtype).removeprefix("torch.")
                do = "Store it in fp32." if tensor.dtype == torch.float16 else None
                raise UserError(f"{tail} holds NaN or infinity in {kind}", do=do)
            product *= max(1.0, float(tensor.abs().max()))
        if product > MAX_CHANGE:
            raise UserError(f"its numbers are too large: their product is about {product:.0e}")

    def to(
        self, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Weights:
        """A copy whose floating-point tensors are of ``dtype`` and on ``device``."""
        changes = {
            name: value.to(device=device or value.device, dtype=dtype or value.dtype)
            for name, value in vars(self).items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        made = copy.copy(self)
        vars(made).update(changes)
        return made

    @property
    def dtype(self) -> torch.dtype:
        """The widest floating-point type among the tensors."""
        kinds = (v.dtype for n, v in self.tensors().items() if n != "alpha")
        return reduce(torch.promote_types, kinds)


@dataclass(eq=False)
class LoraWeights(Weights):
    """LoRA, LoCon (convolutions), with ``mid`` the Tucker form, with ``dora_scale`` DoRA.

    ``ΔW = alpha / rank · up · down`` (Hu et al. 2021, arXiv:2106.09685); DoRA rescales
    W + ΔW to the magnitudes in ``dora_scale`` (Liu et al. 2024, arXiv:2402.09353).

    Shapes: linear ``down [rank, in]``, ``up [out, rank]``; convolution ``down [rank, in, h, w]``,
    ``up [out, rank, 1, 1]``; Tucker ``down [rank, in, 1, 1]``, ``mid [rank, rank, h, w]``.
    """

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None
    dora_scale: Tensor | None = None
    bias: Tensor | None = None
    method: ClassVar[str] = "lora"
    TAILS: ClassVar[Mapping[str, str]] = {
        "down": "lora_down.weight",
        "up": "lora_up.weight",
        "mid": "lora_mid.weight",
        "bias": "diff_b",
        **COMMON,
    }

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def is_plain(self) -> bool:
        return self.mid is None and self.dora_scale is None and self.bias is None

    def check(self) -> None:
        matrix_or_convolution("lora_down", self.down)
        matrix_or_convolution("lora_up", self.up)
        inner, kernel = self.rank, tuple(self.down.shape[2:])
        if self.mid is not None:
            expect("lora_mid", self.mid, None, self.rank, None, None)
            expect("lora_down", self.down, self.rank, None, *[1] * (self.down.ndim - 2))
            inner, kernel = int(self.mid.shape[0]), tuple(self.mid.shape[2:])
        expect("lora_up", self.up, self.up.shape[0], inner, *[1] * (self.up.ndim - 2))
        out, inputs = int(self.up.shape[0]), int(self.down.shape[1])
        check_size(self.rank, out, inputs, *kernel)
        check_magnitudes(self.dora_scale, out, inputs)
        if self.bias is not None:
            expect("diff_b", self.bias, out)

    def factors(self) -> Factors | None:
        return None if self.needs_base else self.low_rank()

    def low_rank(self) -> Factors:
        """The product ``up · down`` with its scale, whatever DoRA makes of it later."""
        up, down = self.up.float(), self.down.float()
        if self.mid is not None:
            down = torch.einsum("mnhw,ni->mihw", self.mid.float(), down.flatten(1))
        shape = (up.shape[0], *down.shape[1:])
        scale = self.alpha / self.rank
        return up.flatten(1) * scale, down.flatten(1), shape

    def delta(self, base: Tensor | None = None) -> Tensor:
        up, down, shape = self.low_rank()
        return finish((up @ down).reshape(shape), base, self.dora_scale)


@dataclass(eq=False)
class DiffWeights(Weights):
    """A change stored in full: ``weight`` of the base's shape, ``bias`` [out], either optional."""

    weight: Tensor | None
    bias: Tensor | None = None
    alpha: float = 1.0
    norm: bool = False
    """Written as LyCORIS writes normalisation layers (``w_norm``, ``b_norm``)."""
    method: ClassVar[str] = "diff"
    rank: ClassVar[int] = 0
    TAILS: ClassVar[Mapping[str, str]] = {"weight": "diff", "bias": "diff_b"}

    @property
    def is_small(self) -> bool:
        """Norms and biases: vectors have no rank to speak of, and stay as they are."""
        return self.weight is None or self.weight.ndim < 2

    def check(self) -> None:
        if self.weight is not None:
            expect("diff", self.weight, *[None] * min(max(self.weight.ndim, 1), 4))
            check_size(1, *self.weight.shape)
            if self.norm:
                expect("w_norm", self.weight, None)
        if self.bias is not None:
            expect("diff_b", self.bias, None if self.weight is None else self.weight.shape[0])

    def delta(self, base: Tensor | None = None) -> Tensor:
        if self.weight is not None:
            return finish(self.weight.float(), base, None)
        if base is None:
            raise UserError("a change of a bias alone needs the base's weight for its shape")
        return torch.zeros_like(base, dtype=torch.float32)

    def tensors(self) -> dict[str, Tensor]:
        named = super().tensors()
        return {NORMS[tail]: t for tail, t in named.items()} if self.norm else named


NORMS = {"diff": "w_norm", "diff_b": "b_norm"}


def expect(name: str, tensor: Tensor, *sizes: int | None) -> None:
    """Raises ``UserError`` unless a tensor has these sizes; ``None`` stands for any."""
    fits = tensor.ndim == len(sizes) and all(
        size in (None, n) for n, size in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        raise UserError(f"{name} has shape {list(tensor.shape)}, [{wanted}] is wanted")


def matrix_or_convolution(name: str, tensor: Tensor) -> None:
    """Raises ``UserError`` unless a tensor is ``[a, b]`` or ``[a, b, h, w]``."""
    if tensor.ndim not in (2, 4):
        raise UserError(
            f"{name} has shape {list(tensor.shape)}, and is neither a matrix nor a convolution"
        )


def check_size(rank: int, *shape: int) -> None:
    """Raises ``UserError`` for a rank or a ΔW larger than any model has."""
    if rank > MAX_RANK:
        raise UserError(f"a rank of {rank:,} is more than any adapter has (at most {MAX_RANK:,})")
    if math.prod(shape) > MAX_NUMBERS:
        raise UserError(f"it changes a weight of shape {list(shape)}, larger than any model has")


def check_magnitudes(scale: Tensor | None, out: int, inputs: int) -> None:
    """Raises ``UserError`` unless DoRA's magnitudes are one for each output or each input.

    ``inputs`` may be those of a whole kernel: LoHa and LoKr store convolutions flat.
    """
    if scale is None:
        return
    longest = max(scale.shape, default=0)
    if not longest or longest != scale.numel() or (longest != out and inputs % longest):
        raise UserError(f"dora_scale has shape {list(scale.shape)}, the weight [{out}, {inputs}]")


def add_bias(offset: Tensor | None, shift: Tensor, strength: float) -> Tensor:
    """``offset + strength · shift`` in fp32.

    Raises:
        UserError: there is no bias to change, or it has another size.
    """
    if offset is None:
        raise UserError("the adapter changes a bias that the base does not have")
    if shift.numel() != offset.numel():
        raise UserError(
            f"the adapter changes {shift.numel()} biases, and the base has {offset.numel()}",
            do="Use an adapter that was made for this base.",
        )
    return offset.float() + shift.reshape(offset.shape) * strength


def require_fit(shape: Sequence[int], base: Tensor) -> None:
    """Raises ``UserError`` unless a change of this shape, flat or not, is one of this weight."""
    if math.prod(shape) != base.numel() or shape[0] != base.shape[0]:
        raise UserError(
            f"the adapter changes a weight of shape {list(shape)}, "
            f"but the base's is {list(base.shape)}",
            do="Use an adapter that was made for this base.",
        )


def finish(delta: Tensor, base: Tensor | None, dora_scale: Tensor | None) -> Tensor:
    """ΔW in the base's shape, rescaled where it is DoRA.

    Raises:
        UserError: sizes differ, or DoRA without a base.
    """
    if base is not None and delta.shape != base.shape:
        require_fit(delta.shape, base)
        delta = delta.reshape(base.shape)
    if dora_scale is None:
        return delta
    if base is None:
        raise UserError(
            "the weight change of a DoRA depends on the base model",
            do="Give the base that it was trained on.",
        )
    weight = base.float()
    changed = weight + delta
    magnitude = dora_scale.float()
    if weight.ndim < 2:
        raise UserError("it is a DoRA of a vector, and magnitudes are those of a matrix")
    check_magnitudes(magnitude, *weight.shape[:2])
    outputs = magnitude.shape[0] == weight.shape[0] or magnitude.numel() != weight.shape[1]
    axis = 0 if outputs else 1
    others = [other for other in range(weight.ndim) if other != axis]
    magnitude = magnitude.reshape([-1 if other == axis else 1 for other in range(weight.ndim)])
    norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
    return changed * (magnitude / norm.clamp_min(torch.finfo(torch.float32).tiny)) - weight
