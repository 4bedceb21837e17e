"""The memory that a run will need, known before anything is loaded.

Weights, gradients and optimizer states are counted; activations come from a trace on the meta
device; workspace and the driver's own share are rules of thumb that say so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.memory.activations import Trace, trace
from dreambooth_core.memory.streaming import TOGETHER, spread
from dreambooth_core.options.combinations import Asked
from dreambooth_core.options.memory import GIB

CUDA_CONTEXT = int(0.6 * GIB)
"""What the CUDA driver and its libraries take before the first tensor."""
WORKSPACE_TENSORS = 4
"""Temporary tensors as large as the largest activation: a gradient coming in and one going out,
a converted copy, and what the convolution library unfolds."""
_QUANTIZED_BYTES = {"nf4": 0.5 + 1 / 64 + 1 / 4096, "int8": 1.0, "fp8": 1.0}
_HALF = {"fp16": torch.float16, "bf16": torch.bfloat16, "full_bf16": torch.bfloat16}
COMPUTED = 25e12
"""Floating-point operations a second that training in half precision gets out of a card of the
middle class (an RTX 3060 or 4060, half of its limit). Larger ones are several times faster."""
COPIED = 12e9
"""Bytes a second over PCIe 3.0 x16 or 4.0 x8 from memory that the GPU can reach by itself."""
NOTHING = r"$^"
"""A regular expression that is found nowhere."""


@dataclass(frozen=True)
class Part:
    """One model of the base."""

    name: str
    """``unet``, ``text_encoder``, ``text_encoder_2``, ``vae``."""
    module: nn.Module
    """On the meta device, prepared by the method: ``requires_grad`` and dtypes are read."""
    resident: bool = True
    """Whether it stays on the device while training. What is cached leaves."""
    whole: str = NOTHING
    """A regular expression on the names of linear layers that are never quantised."""
    blocks: Sequence[nn.Module] = ()
    """Its repeated blocks, which can lie in RAM."""

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Its weights and buffers."""
        return [*self.module.parameters(), *self.module.buffers()]

    @cached_property
    def quantized(self) -> frozenset[int]:
        """By ``id``, the weights of those layers that can be."""
        return frozenset(
            id(m.weight)
            for name, m in self.module.named_modules()
            if isinstance(m, nn.Linear)
            and not m.weight.requires_grad
            and not re.search(self.whole, name)
        )


@dataclass(frozen=True)
class Estimate:
    """Bytes on the training device."""

    weights: int
    """Of all parts that stay on the device."""
    gradients: int
    """Of everything trained; with a fused backward pass of the largest weight alone."""
    optimizer: int
    """Of the optimizer's states. Paged ones may leave the device."""
    ema: int
    activations: int
    """Kept for the backward pass when it begins."""
    recomputed: int
    """Gradient checkpointing: what the largest block keeps while it is computed again."""
    training: int
    """The most that activations and gradients take together: less than their sums, because
    activations are freed while gradients appear."""
    workspace: int
    """Temporary memory of single operations. A rule of thumb."""
    overhead: int
    """The driver's own. A rule of thumb."""
    paged: bool
    """Whether the optimizer's states may spill into RAM."""
    trained: int
    """Trained numbers."""
    streamed: int
    """Of weights and optimizer states that lie in RAM and cross the bus at each step."""
    seconds: float
    """A step takes at least so long on a GPU of the middle class. A rule of thumb."""

    @property
    def peak(self) -> int:
        """The most at any time while training."""
        fixed = self.weights + self.optimizer + self.ema
        return fixed + self.training + self.workspace + self.overhead

    def rows(self) -> list[tuple[str, int]]:
        """What a person is shown: name and bytes of what there is."""
        named = [
            ("weights", self.weights),
            ("gradients", self.gradients),
            ("optimizer states", self.optimizer),
            ("EMA", self.ema),
            ("activations", self.activations),
            ("recomputed block", self.recomputed),
            ("workspace", self.workspace),
            ("driver", self.overhead),
        ]
        return [(name, size) for name, size in named if size]


class Estimator:
    """Traces once, and then answers for whatever is asked of the same models in no time.

    Args:
        parts: the base's models on the meta device, prepared by the method.
        run: one training step's forward pass on meta tensors, through whatever is trained, up
            to the loss (see ``memory.models``).
        precision: the run's; another precision needs another trace.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        run: Callable[[], Any],
        *,
        precision: str = "no",
        device: str = "cuda",
    ) -> None:
        self.parts = list(parts)
        self.trace: Trace = trace(
            [part.module for part in parts],
            run,
            autocast=_HALF.get(precision),
            norms_in_fp32=device != "cpu",
        )

    def estimate(self, asked: Asked) -> Estimate:
        """The memory for a configuration of the precision and device that were traced."""
        passes, ema = asked.config.run.gradient_accumulation_steps, asked.optim.ema
        fused = asked.optim.fused_backward_pass
        trained = [t for part in self.parts for t in part.tensors if t.requires_grad]
        gradients = [p.nbytes for p in trained]
        checkpointing = asked.config.memory.gradient_checkpointing
        mode = "one" if fused else "grow" if passes == 1 else "there"
        streams = [Lying(part, asked) for part in self.parts if part.resident]
        away = sum(stream.away for stream in streams)
        states_away = sum(stream.states for stream in streams)
        forward = self.trace.forward_peak(checkpointing)
        if states_away:  # autocast then keeps no copies of trained weights
            forward = self.trace.kept(checkpointing)
        training = max(
            self.trace.backward_peak(checkpointing=checkpointing, gradients=mode),
            forward + (sum(gradients) if mode == "there" else 0),
            0 if mode == "one" else sum(gradients),
        )
        return Estimate(
            weights=sum(stream.on_device for stream in streams),
            gradients=max(gradients, default=0) if fused else sum(gradients),
            optimizer=sum(_states(p, asked) for p in trained)
            - states_away
            + sum(stream.states_here for stream in streams),
            ema=sum(p.numel() * 4 for p in trained) if ema.enabled and not ema.on_cpu else 0,
            activations=self.trace.kept(checkpointing),
            recomputed=self.trace.largest_block if checkpointing else 0,
            training=training,
            workspace=self._workspace(asked, trained),
            overhead=CUDA_CONTEXT if asked.device == "cuda" else 0,
            paged=asked.optimizer.paged,
            trained=sum(p.numel() for p in trained),
            streamed=away + states_away,
            seconds=pace(
                self.trace.operations,
                streamed=away,
                states=states_away,
                trained=fused and states_away > 0,
                checkpointing=checkpointing,
                passes=passes,
            ),
        )

    def _workspace(self, asked: Asked, trained: list[Tensor]) -> int:
        size = WORKSPACE_TENSORS * self.trace.largest
        if asked.optim.stochastic_rounding:
            # Weight, gradient and random bits of one weight, in 32 bits each.
            size += max((p.numel() * 12 for p in trained), default=0)
        if asked.config.memory.quantize != "no":
            linears = (m for part in self.parts for m in part.module.modules())
            sizes = (m.weight.numel() * 2 for m in linears if isinstance(m, nn.Linear))
            size += max(sizes, default=0)
        if asked.processes > 1:
            # Buckets in which gradients travel.
            size += min(sum(p.nbytes for p in trained), 25 * 1024 * 1024)
        return size


def _states(parameter: Tensor, asked: Asked) -> int:
    seen = 4 if asked.optim.stochastic_rounding else parameter.element_size()
    return asked.optimizer.state_bytes(parameter.shape, seen)


class Lying:
    """A part's weights and buffers, frozen linear layers quantised if asked; what of them lies in
    RAM, and what of that is on the device at any time, in bytes."""

    def __init__(self, part: Part, asked: Asked, *, quantized: bool = True) -> None:
        """``quantized``: whether it is quantised yet, if that is asked."""
        kind = asked.config.memory.quantize if quantized and part.name != "vae" else "no"
        small = frozenset[int]() if kind == "no" else part.quantized

        def size(tensor: Tensor) -> int:
            least = id(tensor) in small
            return int(tensor.numel() * _QUANTIZED_BYTES[kind]) if least else tensor.nbytes

        chosen = [part.blocks[n] for n in spread(len(part.blocks), asked.config.memory.share)]
        trained = all(p.requires_grad for block in chosen for p in block.parameters())
        blocks = [
            [t for t in [*b.parameters(), *b.buffers()] if trained or not t.requires_grad]
            for b in chosen
        ]
        weights = [sum(map(size, tensors)) for tensors in blocks]
        states = [sum(_states(t, asked) for t in tensors if t.requires_grad) for tensors in blocks]
        self.whole, self.away, self.states = sum(map(size, part.tensors)), sum(weights), sum(states)
        self.here = sum(sorted(weights)[-TOGETHER:])
        self.on_device = self.whole - self.away + self.here
        self.states_here = sum(sorted(states)[-TOGETHER:])


def pace(
    forward: float,
    *,
    streamed: int,
    states: int,
    trained: bool,
    checkpointing: bool,
    passes: int,
) -> float:
    """Seconds that a step takes at least on a GPU. A rule of thumb: it tells whether streaming is
    bearable, not how fast a card is.

    Args:
        forward: floating-point operations of one forward pass.
        streamed: bytes of weights that lie in RAM.
        states: bytes of their optimizer's states.
        trained: whether the model's own weights are trained. A backward pass then computes as much
            for them as for what it passes on, and they go back with their states.
        checkpointing: whether the forward pass is computed again for the backward pass.
        passes: forward passes in a step, one after another.
    """
    operations = forward * ((3 if trained else 2) + checkpointing) * passes
    copied = (3 * streamed + 2 * states if trained else 2 * streamed) * passes
    # Blocks are copied while others compute, so the longer counts.
    return max(operations / COMPUTED, copied / COPIED)
