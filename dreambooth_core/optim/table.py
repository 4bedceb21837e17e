"""The optimizers: one record each, with all that is known of it. Standard library only.

Where it comes from, how our options are called there, what it can and cannot do, and how much
memory its states take. ``build.py`` makes one from its record; ``combinations.py`` refuses what a
record says cannot be; the memory estimate adds up ``state_bytes``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dreambooth_core.registry import Registry

StateBytes = Callable[[Sequence[int], int], int]
"""Bytes of the states of one weight, by its shape and the bytes of one of its numbers: 4 with
stochastic rounding, which steps in fp32. Step counts and the like are left out."""


@dataclass(frozen=True)
class OptimizerSpec:
    """All that is known of one optimizer."""

    name: str
    package: str
    """The pip package that it comes from; ``torch`` and ``transformers`` are always there."""
    target: str
    """Where the class is: ``module:Class``."""
    state_bytes: StateBytes
    betas: tuple[float, ...] = (0.9, 0.999)
    """Defaults of ``beta1`` and ``beta2``; further ones are passed on as they are, and without any
    it takes none."""
    has_epsilon: bool = True
    momentum: str = ""
    """The argument that ``beta1`` becomes where there are no betas."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments that differ from the library's own defaults."""
    per_parameter: bool = True
    """Whether weights may take their steps one at a time: nothing is shared among them."""
    finds_rate: bool = False
    """Whether the learning rate is a factor of a rate that the optimizer finds itself."""
    averages: bool = False
    """Whether the optimizer averages weights itself, in place of a schedule."""
    fused: bool = False
    """Whether to ask for torch's fused kernel where it has one for the weights."""
    shards: bool = False
    """Whether it steps on pieces of the weights as on the whole (FSDP2)."""
    paged: bool = False
    """Whether the states spill into RAM when the GPU's memory is short."""


OPTIMIZERS: Registry[OptimizerSpec] = Registry(
    "optimizer", where="optim.optimizer", group="dreambooth.optimizers"
)


def like_weights(tensors: int) -> StateBytes:
    """So many tensors like the weight, in its precision."""
    return lambda shape, element: tensors * math.prod(shape) * element


def in_fp32(tensors: int) -> StateBytes:
    """So many tensors like the weight, in fp32 whatever the weight is."""
    return lambda shape, element: tensors * math.prod(shape) * 4


def in_8bit(tensors: int) -> StateBytes:
    """bitsandbytes' 8-bit states: 256 numbers share an fp32 scale, and tensors of fewer than 4096
    numbers stay in fp32."""

    def size(shape: Sequence[int], element: int) -> int:
        count = math.prod(shape)
        if count < 4096:
            return tensors * count * 4
        return tensors * (count + math.ceil(count / 256) * 4)

    return size


def factored(shape: Sequence[int], element: int) -> int:
    """Adafactor's (Shazeer & Stern 2018): a row and a column of the squares, in fp32."""
    if len(shape) < 2:
        return math.prod(shape) * 4
    return (math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]) * 4


def _bitsandbytes(name: str, cls: str, states: StateBytes, **more: Any) -> OptimizerSpec:
    return OptimizerSpec(
        name,
        "bitsandbytes",
        f"bitsandbytes.optim:{cls}",
        states,
        paged=name.startswith("paged_"),
        **more,
    )


_LION: dict[str, Any] = {"betas": (0.9, 0.99), "has_epsilon": False}
_MOMENTUM: dict[str, Any] = {"betas": (0.9,), "has_epsilon": False, "momentum": "momentum"}
_SELF_TUNING: dict[str, Any] = {"per_parameter": False, "finds_rate": True}
_SCHEDULE_FREE: dict[str, Any] = {"per_parameter": False, "averages": True}

OPTIMIZERS.add(
    OptimizerSpec("adamw", "torch", "torch.optim:AdamW", like_weights(2), fused=True, shards=True),
    _bitsandbytes("adamw8bit", "AdamW8bit", in_8bit(2)),
    _bitsandbytes("paged_adamw", "PagedAdamW", in_fp32(2)),
    _bitsandbytes("paged_adamw8bit", "PagedAdamW8bit", in_8bit(2)),
    OptimizerSpec("adam", "torch", "torch.optim:Adam", like_weights(2), fused=True, shards=True),
    OptimizerSpec("sgd", "torch", "torch.optim:SGD", like_weights(1), shards=True, **_MOMENTUM),
    _bitsandbytes("lion", "Lion", in_fp32(1), **_LION),
    _bitsandbytes("lion8bit", "Lion8bit", in_8bit(1), **_LION),
    _bitsandbytes("paged_lion8bit", "PagedLion8bit", in_8bit(1), **_LION),
    # Two means and one square: the means are one tensor of twice the size.
    _bitsandbytes("ademamix8bit", "AdEMAMix8bit", in_8bit(3), betas=(0.9, 0.999, 0.9999)),
    # Relative steps would ignore the learning rate, and scaling by a weight's size would
    # change what it means.
    OptimizerSpec(
        "adafactor",
        "transformers",
        "transformers.optimization:Adafactor",
        factored,
        betas=(),
        has_epsilon=False,
        momentum="beta1",
        arguments={"scale_parameter": False, "relative_step": False},
    ),
    # The starting point (unless it is 0) and a sum besides Adam's two. Bias correction and the
    # warm-up safeguard are what diffusion models are trained with.
    OptimizerSpec(
        "prodigy",
        "prodigyopt",
        "prodigyopt:Prodigy",
        like_weights(4),
        arguments={"use_bias_correction": True, "safeguard_warmup": True},
        **_SELF_TUNING,
    ),
    OptimizerSpec(
        "dadapt_adam",
        "dadaptation",
        "dadaptation:DAdaptAdam",
        like_weights(3),
        arguments={"decouple": True, "use_bias_correction": True},
        **_SELF_TUNING,
    ),
    OptimizerSpec(
        "dadapt_lion",
        "dadaptation",
        "dadaptation:DAdaptLion",
        like_weights(2),
        **_LION,
        **_SELF_TUNING,
    ),
    OptimizerSpec(
        "adamw_schedulefree",
        "schedulefree",
        "schedulefree:AdamWScheduleFree",
        like_weights(2),
        arguments={"warmup_steps": 0},
        **_SCHEDULE_FREE,
    ),
    OptimizerSpec(
        "radam_schedulefree",
        "schedulefree",
        "schedulefree:RAdamScheduleFree",
        like_weights(2),
        **_SCHEDULE_FREE,
    ),
    OptimizerSpec(
        "sgd_schedulefree",
        "schedulefree",
        "schedulefree:SGDScheduleFree",
        like_weights(1),
        arguments={"warmup_steps": 0},
        **_MOMENTUM,
        **_SCHEDULE_FREE,
    ),
)
