"""What a forward pass keeps for the backward pass, and the peak while that runs.

The model runs on the meta device, which knows shapes and no numbers, and every tensor that
autograd saves is written down in order. The backward pass frees them in reverse order while the
gradients appear, which gives the peak.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dreambooth_core.memory.emulate import Emulation


@dataclass
class Block:
    """Tensors kept inside one checkpointed block, or outside of all of them."""

    saved: list[tuple[int, int]] = field(default_factory=list)
    """(storage, bytes) in the order in which they were saved; a storage only once."""
    parameters: list[Tensor] = field(default_factory=list)
    """Trained parameters in the order of their use."""


@dataclass
class Trace:
    """What one forward pass keeps."""

    blocks: list[Block] = field(default_factory=list)
    """In the order of the forward pass. Odd ones are checkpointed blocks."""
    inputs: list[list[tuple[int, int]]] = field(default_factory=list)
    """Inputs of the block with the same number, which checkpointing keeps in its stead."""
    copies: set[int] = field(default_factory=set)
    """Storages that are half-precision copies of trained weights, made by autocast."""
    copied: int = 0
    """Bytes of all such copies. Autocast holds them until the forward pass is over."""
    largest: int = 0
    """Bytes of the largest single tensor."""
    operations: int = 0
    """Floating-point operations of the forward pass."""

    def kept(self, checkpointing: bool) -> int:
        """Bytes kept for the backward pass when it begins."""
        return sum(self._kept(checkpointing).values())

    def forward_peak(self, checkpointing: bool) -> int:
        """Bytes kept at the end of the forward pass, when autocast still has its copies."""
        kept = self._kept(checkpointing)
        counted = sum(size for storage, size in kept.items() if storage in self.copies)
        return sum(kept.values()) + self.copied - counted

    def _kept_by_block(self, checkpointing: bool) -> list[dict[int, int]]:
        """Storages and their bytes, of which some are kept by several blocks."""
        return [
            dict(inputs if checkpointing and number % 2 else block.saved)
            for number, (block, inputs) in enumerate(zip(self.blocks, self.inputs, strict=True))
        ]

    def _kept(self, checkpointing: bool) -> dict[int, int]:
        return {s: size for kept in self._kept_by_block(checkpointing) for s, size in kept.items()}

    @property
    def largest_block(self) -> int:
        """Bytes that the most expensive checkpointed block keeps while it is computed again."""
        return max((sum(dict(b.saved).values()) for b in self.blocks[1::2]), default=0)

    def backward_peak(self, *, checkpointing: bool, gradients: str = "grow") -> int:
        """The most that activations and gradients take together, in bytes.

        ``gradients``: ``grow`` where they appear during the backward pass, ``there`` where an
        earlier part of the batch left them all, ``one`` where each is used and freed at once.
        """
        kept, freed = dict[int, int](), list[int]()
        for own in self._kept_by_block(checkpointing):
            # What a block is the first to use it is the last to use in the backward pass.
            freed.append(sum(size for storage, size in own.items() if storage not in kept))
            kept.update(own)
        now = sum(kept.values())
        if gradients == "there":
            every = {id(p): p.nbytes for block in self.blocks for p in block.parameters}
            now += sum(every.values())
        peak, born = now, set[int]()
        for number, block in reversed(list(enumerate(self.blocks))):
            inside = 0
            if checkpointing and number % 2:  # computed again
                saved = dict(block.saved).items()
                inside = sum(size for storage, size in saved if storage not in kept)
            now += inside
            peak = max(peak, now)
            for parameter in reversed(block.parameters):
                if id(parameter) in born or gradients == "there":
                    continue
                born.add(id(parameter))
                peak = max(peak, now + parameter.nbytes)
                now += parameter.nbytes if gradients == "grow" else 0
            now -= inside + freed[number]
        return peak


class _Recorder:
    """Writes down what autograd saves. Even blocks are between checkpointed ones."""

    def __init__(self, modules: list[nn.Module], emulation: Emulation) -> None:
        self.trace = Trace(blocks=[Block()], inputs=[[]])
        self._emulation = emulation
        self._parameters = {
            p.untyped_storage()._cdata: p for module in modules for p in module.parameters()
        }
        self._buffers = {b.untyped_storage()._cdata for module in modules for b in module.buffers()}
        # Storages must stay alive, or another could get the same number.
        self._alive: list[Any] = []
        self._known: set[int] = set()

    def pack(self, tensor: Tensor) -> Tensor:
        """Autograd's hook."""
        self._note(tensor, self.trace.blocks[-1])
        return tensor

    def checkpoint(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of ``torch.utils.checkpoint``: runs the block, and notes what it would keep."""
        outer = Block()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._note(leaf, outer)
        self.trace.blocks.append(Block())
        self.trace.inputs.append(outer.saved)
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            result = function(*args, **kwargs)
        self.trace.blocks.append(Block())
        self.trace.inputs.append([])
        return result

    def finish(self) -> Trace:
        """The trace, with the weights' copies added up."""
        self.trace.copied = self._emulation.copied
        self.trace.operations = self._emulation.operations
        # Autograd does not save weights whose input needs no gradient, nor biases. Their
        # gradients are taken to appear first: rather too much than too little.
        used = {id(p) for block in self.trace.blocks for p in block.parameters}
        unseen = [p for p in self._parameters.values() if p.requires_grad and id(p) not in used]
        self.trace.blocks[-1].parameters.extend(unseen)
        return self.trace

    def _note(self, tensor: Tensor, block: Block) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        parameter = self._parameters.get(key)
        if parameter is not None:
            if parameter.requires_grad:
                block.parameters.append(parameter)
            return
        if key in self._buffers:
            return
        weight = self._emulation.weights.get(key)
        if weight is not None:
            block.parameters.append(weight)
            self.trace.copies.add(key)
        if key not in self._known:
            self._known.add(key)
            self._alive.append(storage)
            self.trace.largest = max(self.trace.largest, storage.nbytes())
        block.saved.append((key, storage.nbytes()))


@contextmanager
def _checkpointed(modules: list[nn.Module], function: Callable[..., Any]) -> Iterator[None]:
    """Inside, every part that can be checkpointed calls ``function`` to do so."""
    with ExitStack() as undo:
        for part in (part for module in modules for part in module.modules()):
            if hasattr(part, "gradient_checkpointing"):
                own = {"gradient_checkpointing": True, "_gradient_checkpointing_func": function}
                for name, value in own.items():
                    undo.callback(setattr, part, name, getattr(part, name, None))
                    setattr(part, name, value)
        for module in modules:
            undo.callback(module.train, module.training)
            module.train()
        yield


def trace(
    modules: list[nn.Module],
    run: Callable[[], Any],
    *,
    autocast: torch.dtype | None = None,
    norms_in_fp32: bool = True,
) -> Trace:
    """Traces a forward pass.

    Args:
        modules: the models that take part, on the meta device. ``requires_grad`` says what is
            trained.
        run: the forward pass, with meta tensors.
        autocast: half precision that autocast computes in, or None.
        norms_in_fp32: whether autocast leaves norms and softmax in fp32, as on GPUs.

    Returns:
        What is kept both with and without gradient checkpointing.
    """
    emulation = Emulation(autocast, norms_in_fp32=norms_in_fp32)
    recorder = _Recorder(modules, emulation)
    with (
        torch.enable_grad(),
        _checkpointed(modules, recorder.checkpoint),
        torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda tensor: tensor),
        emulation,
    ):
        result = run()
    del result
    return recorder.finish()
