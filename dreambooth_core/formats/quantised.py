"""Quantisations that cannot be read are told by their keys, and named, with what is needed."""

from __future__ import annotations

from collections.abc import Iterable

_QUANTISED: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".qweight", ".wscales"), "Nunchaku (SVDQuant)"),
    ((".qweight", ".smooth_factor"), "Nunchaku (SVDQuant)"),
    ((".qweight", ".qzeros"), "GPTQ or AWQ"),
    ((".quant_state.bitsandbytes__",), "bitsandbytes (4 bit)"),
    ((".weight.absmax",), "bitsandbytes (4 bit)"),
    ((".weight_scale_2",), "NVFP4"),
    (("._data", "._scale"), "quanto"),
    ((".weight.SCB",), "bitsandbytes (8 bit)"),
)
"""Fragments of keys that must all occur, and whose they are."""
ADVICE = "It cannot be trained or merged: get the model in bf16, fp16 or fp8"


def quantised_by(keys: Iterable[str]) -> str | None:
    """The quantisation that this file is stored in, if it is one that cannot be read."""
    keys = tuple(keys)
    for fragments, method in _QUANTISED:
        if all(any(part in key for key in keys) for part in fragments):
            return method
    return None
