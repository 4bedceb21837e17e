"""From the tensors that a file lists under one module to :class:`Weights`, and how tails are named.

A *tail* is what follows the module's name: ``.lora_down.weight``, ``.lora_A.weight``, ``.alpha``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, cast

import torch
from torch import Tensor

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.adapters.model import (
    DiffWeights,
    LohaWeights,
    LokrWeights,
    LoraWeights,
    OftWeights,
    Weights,
)
from dreambooth_core.formats.adapters.peft_config import PeftSettings
from dreambooth_core.formats.adapters.weights import check_size, expect

_PLAIN = (
    "alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t[12]|oft_blocks|"
    "rescale|diff|diff_b|w_norm|b_norm"
)
_PATTERNS = (
    (re.compile(r"(.+)\.lora_(down|up|mid)\.weight"), None),
    (re.compile(rf"(.+?)\.({_PLAIN})(?:\.\w+)?"), None),
    (re.compile(r"(.+?)\.lora_([AB])(?:\.\w+)?(?:\.weight)?"), None),
    (re.compile(r"(.+?)\.(lora_magnitude_vector)(?:\.\w+)?(?:\.weight)?"), None),
    (re.compile(r"(.+?)\.(oft_R)(?:\.\w+)?(?:\.weight)?"), None),
    (re.compile(r"(.+?)(?:\.processor)?\.(to_[a-z]+)_lora\.(down|up)\.weight"), "joined"),
    (re.compile(r"(.+?)(?:\.processor)?\.(to_[a-z]+)_lora\.(alpha)"), "joined"),
    (re.compile(r"(.+?)\.lora(?:_linear_layer)?\.(down|up|alpha)(?:\.weight)?"), None),
)
_OTHER_METHODS = {
    "GLoRA": re.compile(r".+\.[ab][12]\.weight"),
    "(IA)³": re.compile(r".+\.(?:on_input|ia3_l)(?:\.\w+)*"),
    "VeRA": re.compile(r".+\.vera_lambda_[bd](?:\.\w+)*"),
    "a LoRA that enlarges weights": re.compile(r".+\.reshape_weight"),
    "replaced weights": re.compile(r".+\.set_weight"),
    "a LoRA with biases": re.compile(r".+\.lora_B(?:\.\w+)?\.bias"),
}
MAX_ALPHA = 1e12
_SAME = {"A": "down", "B": "up"}


def split(key: str) -> tuple[str, str] | None:
    """``(module's name in the file, tail)`` of a key; ``None`` if no tail is known."""
    if key.endswith(".bias") and ".lora" in key:
        return None
    for pattern, joined in _PATTERNS:
        match = pattern.fullmatch(key)
        if match and joined:
            return f"{match[1]}.{match[2]}", match[3]
        if match:
            return match[1], _SAME.get(match[2], match[2])
    return None


def other_method(key: str) -> str | None:
    """The name of a method that is known but not handled, from one of its keys."""
    return next((name for name, form in _OTHER_METHODS.items() if form.fullmatch(key)), None)


@dataclass(frozen=True)
class Piece:
    """The tensors of one module, by tail."""

    name: str
    tails: Mapping[str, Tensor]
    settings: PeftSettings | None = None
    """peft's configuration, where the module came with one."""

    def assemble(self, *, strict: bool = True) -> Weights:
        """The module's weights.

        Raises:
            UserError: a tensor is missing, does not belong, or is not of the shape or type that
                the method wants; where ``strict`` also for numbers that are none or overflow.
        """
        try:
            weights = self._built()
            if strict:
                weights.check_numbers()
        except KeyError as error:
            raise UserError(
                f"the adapter's module {self.name} lacks its tensor {error.args[0]!r}",
                do="The file is incomplete: download or save it again.",
            ) from error
        except UserError as error:
            if self.name in error.what:
                raise
            text = f"the adapter's module {self.name} is damaged: {error.what}"
            raise type(error)(text, do=error.do) from error
        return weights

    def _built(self) -> Weights:
        for tail, tensor in self.tails.items():
            if tail != "alpha" and (0 in tensor.shape or not tensor.is_floating_point()):
                kind = str(tensor.dtype).removeprefix("torch.")
                raise UserError(f"{tail} of shape {list(tensor.shape)}, {kind}, is not a weight")
        for build, signs, others in _KINDS:
            sign = next((tail for tail in signs if tail in self.tails), None)
            if sign is not None:
                for tail in self.tails:
                    if tail not in (*signs, *others, "alpha"):
                        raise UserError(f"{tail} does not go with {sign}")
                weights = build(self)
                weights.check()
                self._scale(weights)
                return weights
        raise UserError(f"the adapter's module {self.name} has only {', '.join(self.tails)}")

    def fields(self, kind: type[Weights]) -> dict[str, Any]:
        """The tensors by the fields of a kind, its alpha still unknown. Raises ``KeyError``."""
        found: dict[str, Any] = {"alpha": 1.0} if "alpha" in kind.TAILS else {}
        for field in fields(cast(Any, kind)):
            tail = _short(kind.TAILS.get(field.name, ""))
            if tail in self.tails and tail != "alpha":
                found[field.name] = self.tails[tail]
            elif field.default is MISSING and tail != "alpha":
                raise KeyError(tail)
        return found

    def _scale(self, weights: Weights) -> None:
        """Sets alpha: the stored one, else peft's, else the rank. Raises ``UserError``."""
        if isinstance(weights, LokrWeights) and not weights.rank and self.settings is not None:
            # peft scales also where both factors are full; elsewhere that is not so: put it inside.
            scale = self.settings.scale(self.name)
            if weights.w1 is not None and scale != 1.0:
                weights.w1 = weights.w1 * scale
        elif isinstance(weights, (LoraWeights, LohaWeights, LokrWeights)):
            rank = weights.rank or 1
            if "alpha" in self.tails:
                weights.alpha = _number("alpha", self.tails["alpha"])
            else:
                said = self.settings
                weights.alpha = said.effective_alpha(self.name, rank) if said else float(rank)


def _short(tail: str) -> str:
    return tail.removeprefix("lora_").removesuffix(".weight")


def _number(name: str, tensor: Tensor) -> float:
    """The one number in a tensor. Raises ``UserError``."""
    if tensor.numel() != 1 or tensor.dtype == torch.bool or tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(f"{name} of shape {list(tensor.shape)}, {kind}, is not a number")
    value = float(tensor.reshape(()))
    if abs(value) > MAX_ALPHA and math.isfinite(value):
        raise UserError(f"{name} is {value:g}, more than any adapter has")
    return value


def _lora(piece: Piece) -> Weights:
    weights = LoraWeights(**piece.fields(LoraWeights))
    if weights.up.ndim > 2 and math.prod(weights.up.shape[2:]) != 1:
        raise Unsupported(f"the adapter's module {piece.name} has a k x k up convolution")
    magnitude = piece.tails.get("lora_magnitude_vector")
    if magnitude is not None:
        if weights.dora_scale is not None:
            raise UserError("it has two sets of magnitudes")
        weights.dora_scale = magnitude.reshape(-1, *[1] * (weights.down.ndim - 1))
    return weights


def _lokr(piece: Piece) -> Weights:
    if "lokr_t1" in piece.tails:
        raise Unsupported(f"{piece.name} has a LoKr with a Tucker core in its first factor")
    weights = LokrWeights(**piece.fields(LokrWeights))
    for factor in ("w1", "w2"):
        if getattr(weights, factor) is None:
            _ = piece.tails[f"lokr_{factor}_a"], piece.tails[f"lokr_{factor}_b"]
    return weights


def _oft(piece: Piece) -> Weights:
    alpha = piece.tails.get("alpha")
    limit = 0.0 if alpha is None else _number("alpha", alpha)
    return OftWeights(piece.tails["oft_blocks"], limit, piece.tails.get("rescale"))


def _peft_oft(piece: Piece) -> Weights:
    """Each row of ``oft_R [n, size * (size - 1) / 2]`` is an upper triangle.

    peft's exact Cayley transform has the sign of Q the other way round than its series.
    """
    vectors = piece.tails["oft_R"]
    expect("oft_R", vectors, None, None)
    size = (1 + math.isqrt(1 + 8 * vectors.shape[-1])) // 2
    if size * (size - 1) // 2 != vectors.shape[1]:
        raise UserError(f"oft_R has rows of {vectors.shape[1]}, and no square has such a triangle")
    check_size(size, vectors.shape[0], size, size)
    terms = (piece.settings or PeftSettings()).neumann_terms
    rows, columns = torch.triu_indices(size, size, 1)
    blocks = vectors.new_zeros(vectors.shape[0], size, size)
    blocks[:, rows, columns] = vectors if terms else -vectors
    return OftWeights(blocks, side="in", terms=terms)


_HADA = tuple(tail for tail in LohaWeights.TAILS.values() if tail.startswith("hada_"))
_KRON = (*(tail for tail in LokrWeights.TAILS.values() if tail.startswith("lokr_")), "lokr_t1")
_KINDS: tuple[tuple[Callable[[Piece], Weights], tuple[str, ...], tuple[str, ...]], ...] = (
    (_lora, ("down", "up", "mid", "lora_magnitude_vector"), ("dora_scale", "diff_b")),
    (lambda piece: LohaWeights(**piece.fields(LohaWeights)), _HADA, ("dora_scale",)),
    (_lokr, _KRON, ("dora_scale",)),
    (_oft, ("oft_blocks",), ("rescale",)),
    (_peft_oft, ("oft_R",), ()),
    (lambda p: DiffWeights(p.tails.get("diff"), p.tails.get("diff_b")), ("diff", "diff_b"), ()),
    (
        lambda p: DiffWeights(p.tails.get("w_norm"), p.tails.get("b_norm"), norm=True),
        ("w_norm", "b_norm"),
        (),
    ),
)
"""What makes a method's weights, by the tails that show it, and those that may stand with them
(alpha may with all)."""
