"""How many bytes an optimizer's states take. Closed form, checked against real optimizers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dreambooth_core.optim.kinds import kind_of

BLOCK = 256
"""Numbers that share one fp32 scale in bitsandbytes' 8-bit states."""
SMALL = 4096
"""bitsandbytes keeps fp32 states for tensors with fewer elements."""
QMAP = 256 * 4
"""A table of 256 fp32 values per 8-bit state; one for signed and one for unsigned states is
shared by all tensors that have them."""

_TENSORS = {
    "adamw": 2,
    "adam": 2,
    "sgd": 1,
    "paged_adamw": 2,
    "lion": 1,
    # Prodigy keeps the starting point (unless it is 0) and a sum besides Adam's two.
    "prodigy": 4,
    "dadapt_adam": 3,
    "dadapt_lion": 2,
    "adamw_schedulefree": 2,
    "radam_schedulefree": 2,
    "sgd_schedulefree": 1,
}
_EIGHT_BIT = {
    "adamw8bit": 2,
    "paged_adamw8bit": 2,
    "lion8bit": 1,
    "paged_lion8bit": 1,
    # Two means and one square: the means are one tensor of twice the size.
    "ademamix8bit": 3,
}
_FP32_STATES = ("lion", "paged_adamw")


def state_bytes(name: str, shape: Sequence[int], element_size: int) -> int:
    """Bytes of the states of one weight of ``shape`` with ``element_size`` bytes a number.

    ``element_size`` is what the optimizer sees: 4 with stochastic rounding, which steps in
    fp32. Numbers for the step count and the like are left out.
    """
    kind = kind_of(name)
    count = math.prod(shape)
    if kind.name == "adafactor":
        if len(shape) < 2:
            return count * 4
        row, column = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
        return (row + column) * 4
    if kind.name in _EIGHT_BIT:
        tensors = _EIGHT_BIT[kind.name]
        if count < SMALL:
            return tensors * count * 4
        return tensors * (count + math.ceil(count / BLOCK) * 4)
    size = 4 if kind.name in _FP32_STATES else element_size
    return _TENSORS[kind.name] * count * size


def is_paged(name: str) -> bool:
    """Whether the states spill into the computer's memory when the GPU's is short."""
    return name.startswith("paged_")
