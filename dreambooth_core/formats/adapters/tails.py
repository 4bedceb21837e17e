"""From the tensors that a file lists under one module to :class:`Weights`, and how tails are named.

A *tail* is what follows the module's name: ``.lora_down.weight``, ``.lora_A.weight``, ``.alpha``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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
from dreambooth_core.formats.adapters.weights import (
    check_size,
    expect,
    matrix_or_convolution,
)

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
    """peft's configuration, where the file came with one."""

    def assemble(self, *, strict: bool = True) -> Weights:
        """The module's weights.

        Raises:
            UserError: a tensor is missing, does not belong, or is not of the shape or type that
                the method wants; where ``strict`` also for numbers that are none or overflow.
        """
        try:
            weights = self._built()
            weights.check()
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
        for sign, (build, takes) in _BUILDERS.items():
            if sign in self.tails:
                strange = [t for t in self.tails if t not in takes and t != "alpha"]
                if strange:
                    raise UserError(f"{strange[0]} does not go with {sign}")
                return build(self)
        raise UserError(f"the adapter's module {self.name} has only {', '.join(self.tails)}")

    def alpha(self, rank: int) -> float:
        """The stored alpha, else peft's, else the rank (scale 1). Raises ``UserError``."""
        if "alpha" in self.tails:
            return _number("alpha", self.tails["alpha"])
        if self.settings is not None:
            return self.settings.effective_alpha(self.name, rank)
        return float(rank)

    def dora(self) -> Tensor | None:
        """The magnitudes in LyCORIS' shape, whichever form they came in."""
        return self.tails.get("dora_scale")


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
    down, up = piece.tails["down"], piece.tails["up"]
    matrix_or_convolution("lora_down", down)
    if up.ndim > 2 and math.prod(up.shape[2:]) != 1:
        raise Unsupported(f"the adapter's module {piece.name} has a k x k up convolution")
    dora = piece.dora()
    magnitude = piece.tails.get("lora_magnitude_vector")
    if magnitude is not None and dora is not None:
        raise UserError("it has two sets of magnitudes")
    if magnitude is not None:
        dora = magnitude.reshape(-1, *[1] * (down.ndim - 1))
    alpha = piece.alpha(int(down.shape[0]))
    mid, bias = piece.tails.get("mid"), piece.tails.get("diff_b")
    return LoraWeights(down, up, alpha, mid=mid, dora_scale=dora, bias=bias)


def _loha(piece: Piece) -> Weights:
    tails = piece.tails
    return LohaWeights(
        tails["hada_w1_a"],
        tails["hada_w1_b"],
        tails["hada_w2_a"],
        tails["hada_w2_b"],
        piece.alpha(int(tails["hada_w1_b"].shape[0]) if tails["hada_w1_b"].ndim else 1),
        tails.get("hada_t1"),
        tails.get("hada_t2"),
        piece.dora(),
    )


def _lokr(piece: Piece) -> Weights:
    if "lokr_t1" in piece.tails:
        raise Unsupported(f"{piece.name} has a LoKr with a Tucker core in its first factor")
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    fields: dict[str, Any] = {
        n: piece.tails[f"lokr_{n}"] for n in names if f"lokr_{n}" in piece.tails
    }
    weights = LokrWeights(**fields, dora_scale=piece.dora())
    for factor in ("w1", "w2"):
        if getattr(weights, factor) is None:
            _ = piece.tails[f"lokr_{factor}_a"], piece.tails[f"lokr_{factor}_b"]
    weights.check()
    weights.alpha = piece.alpha(weights.rank or 1)
    if piece.settings is not None and not weights.rank:
        return scaled_full_lokr(weights, piece.settings.scale(piece.name))
    return weights


def scaled_full_lokr(weights: LokrWeights, scale: float) -> LokrWeights:
    """peft scales also where both factors are full; elsewhere that is not so: put it inside."""
    if weights.w1 is not None and scale != 1.0:
        weights.w1 = weights.w1 * scale
    weights.alpha = 1.0
    return weights


def _oft(piece: Piece) -> Weights:
    blocks = piece.tails["oft_blocks"]
    alpha = piece.tails.get("alpha")
    limit = 0.0 if alpha is None else _number("alpha", alpha)
    return OftWeights(blocks, limit, piece.tails.get("rescale"))


def _peft_oft(piece: Piece) -> Weights:
    vectors = piece.tails["oft_R"]
    expect("oft_R", vectors, None, None)
    size = (1 + math.isqrt(1 + 8 * vectors.shape[-1])) // 2
    if size * (size - 1) // 2 != vectors.shape[1]:
        raise UserError(f"oft_R has rows of {vectors.shape[1]}, and no square has such a triangle")
    check_size(size, vectors.shape[0], size, size)
    settings = piece.settings or PeftSettings()
    return oft_from_vectors(vectors, size, settings.neumann_terms)


def oft_from_vectors(vectors: Tensor, size: int, terms: int) -> OftWeights:
    """peft's OFT: each row of ``vectors [n, size * (size - 1) / 2]`` is an upper triangle.

    peft's exact Cayley transform has the sign of Q the other way round than its series.
    """
    rows, columns = torch.triu_indices(size, size, 1)
    blocks = vectors.new_zeros(vectors.shape[0], size, size)
    blocks[:, rows, columns] = vectors if terms else -vectors
    return OftWeights(blocks, side="in", terms=terms)


def _diff(piece: Piece) -> Weights:
    return DiffWeights(piece.tails.get("diff"), piece.tails.get("diff_b"))


def _norm(piece: Piece) -> Weights:
    return DiffWeights(piece.tails.get("w_norm"), piece.tails.get("b_norm"), norm=True)


_LORA_TAILS = ("down", "up", "mid", "dora_scale", "lora_magnitude_vector", "diff_b")
_LOHA_TAILS = tuple(f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
_LOKR_TAILS = tuple(f"lokr_{n}" for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t1", "t2"))
_BUILDERS: dict[str, tuple[Callable[[Piece], Weights], tuple[str, ...]]] = {
    **dict.fromkeys(("down", "up", "mid", "lora_magnitude_vector"), (_lora, _LORA_TAILS)),
    **dict.fromkeys(_LOHA_TAILS, (_loha, (*_LOHA_TAILS, "dora_scale"))),
    **dict.fromkeys(_LOKR_TAILS, (_lokr, (*_LOKR_TAILS, "dora_scale"))),
    "oft_blocks": (_oft, ("oft_blocks", "rescale")),
    "oft_R": (_peft_oft, ("oft_R",)),
    **dict.fromkeys(("diff", "diff_b"), (_diff, ("diff", "diff_b"))),
    **dict.fromkeys(("w_norm", "b_norm"), (_norm, ("w_norm", "b_norm"))),
}
"""By a tail that shows the method: what makes its weights, and the tails that may stand with it
(alpha may with all)."""
