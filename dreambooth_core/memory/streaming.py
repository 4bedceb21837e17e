"""A model whose blocks lie in RAM and come to the device one ahead of their use.

Of the streamed blocks two are on the device at any time: the one that computes, and the one that
is computed next, which is copied meanwhile on a stream of its own. What comes next is what came
next the last time, forward and backward alike, so nothing is assumed of the model but that its
passes resemble each other.

A block's weights lie side by side in one buffer on each side, so that a block is one copy over the
bus. A parameter's ``data`` is a view into one of them: into the device's while the block is there,
else into RAM, where the weights can always be read (call :meth:`Streaming.settle` before). Autograd
keeps frozen weights, and views of them, from the forward for the backward pass. They share the
storage of the device's buffer, which is emptied and filled again rather than made anew, so what
autograd kept comes back with it: blocks need not be checkpointed.

In full fine-tuning each weight takes its step inside the backward pass (``optim.fused``). What
changed goes back to RAM when its block leaves, and the optimizer's states travel with the weights.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from mmap import PAGESIZE
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

log = logging.getLogger(__name__)

ALIGNMENT = 256
"""Bytes. Where a tensor begins in its buffer, as the device's own allocator would have it."""
TOGETHER = 2
"""Blocks that are on the device at a time: the one that computes and the next one."""
FOLLOWS = 4096
"""Numbers that an optimizer's state has at least to travel with its weight. Smaller ones (scales,
counts, tables that weights share) stay."""


class Visit(NamedTuple):
    """A block is about to compute."""

    block: int
    backward: bool


class Streaming:
    """Keeps a model's blocks in RAM, and those that compute on the device.

    Args:
        model: in RAM, with whatever is trained in it already.
        blocks: of the model, none inside another.
        device: where everything else goes, and each block while it computes.
        share: of the blocks that lie in RAM, 0 to 1; they are spread evenly over the model.
        trained: whether the blocks' own weights are trained and change during the backward pass.
            Else what needs a gradient, which adapters add, stays on the device.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[nn.Module],
        device: torch.device,
        *,
        share: float = 1.0,
        trained: bool = False,
    ) -> None:
        self._lane = Lane(device)
        self._trained = trained
        chosen = spread(len(blocks), share)
        self._slabs = [
            Slab([t for t in _tensors(blocks[n]) if trained or not t.requires_grad], self._lane)
            for n in chosen
        ]
        streamed = {id(tensor) for slab in self._slabs for tensor in slab.tensors}
        for tensor in _tensors(model):
            if id(tensor) not in streamed:
                tensor.data = tensor.data.to(device)
        self._changed: set[int] = set()
        self._last: Visit | None = None
        self._follows: dict[Visit | None, Visit] = {}
        self._handles: list[Any] = []
        for index, number in enumerate(chosen):
            enter = partial(self._forward, index)
            leave = partial(self._watch_outputs, index)
            self._handles += [
                blocks[number].register_forward_pre_hook(enter),
                blocks[number].register_forward_hook(leave, with_kwargs=True),
            ]

    @property
    def on_device(self) -> list[int]:
        """Bytes of each streamed block that are on the device now."""
        return [slab.on_device for slab in self._slabs]

    def with_states_of(self, optimizer: Optimizer) -> None:
        """Lets the optimizer's states travel with the trained weights."""
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        for slab in self._slabs:
            slab.states = [
                States(optimizer, groups[id(t)], t) for t in slab.tensors if id(t) in groups
            ]

    def settle(self) -> None:
        """Brings every block back to RAM, and waits: what is read or written there then is what
        the next step trains with."""
        for index in range(len(self._slabs)):
            self._evict(index)
        self._last = None
        self._lane.wait()

    def close(self) -> None:
        """Ends the streaming; the whole model stays usable, its blocks in RAM."""
        self.settle()
        for handle in self._handles:
            handle.remove()

    def _forward(self, index: int, module: nn.Module, inputs: Any) -> None:
        if self._last != Visit(index, backward=True):  # else it is computed again for its backward
            self._visit(Visit(index, backward=False))

    def _watch_outputs(
        self, index: int, module: nn.Module, inputs: Any, named: Any, outputs: Any
    ) -> None:
        """The first gradient that reaches one of a block's outputs begins its backward pass.

        Autograd runs what was recorded last first, so by then all blocks behind it are done.
        """

        def begin(gradient: Tensor) -> None:
            self._visit(Visit(index, backward=True))

        given = {id(leaf) for leaf in tree_leaves((inputs, named))}
        for leaf in tree_leaves(outputs):
            if isinstance(leaf, Tensor) and leaf.requires_grad and id(leaf) not in given:
                leaf.register_hook(begin)

    def _visit(self, visit: Visit) -> None:
        """Makes a block ready to compute, and sends for the one after it."""
        if visit == self._last:
            return
        self._follows[self._last] = visit
        self._last = visit
        after = self._follows.get(visit)
        for index in range(len(self._slabs)):
            if index != visit.block and (after is None or index != after.block):
                self._evict(index)
        self._slabs[visit.block].load(states=visit.backward)
        self._slabs[visit.block].ready()
        if visit.backward and self._trained:
            self._changed.add(visit.block)
        if after is not None:
            self._slabs[after.block].load(states=after.backward)

    def _evict(self, index: int) -> None:
        self._slabs[index].evict(changed=index in self._changed)
        self._changed.discard(index)


class Lane:
    """Copies between RAM and a device, on a stream of its own where the device has streams."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._module: Any = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None)}.get(
            device.type
        )
        self.stream: Any = self._module.Stream(device) if self._module else None
        self._pins = True

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Inside, work is queued behind all that was queued for computing before, and beside what
        is queued after."""
        if self._module is None:
            yield
            return
        self.stream.wait_stream(self._module.current_stream(self.device))
        with self._module.stream(self.stream):
            yield

    def mark(self) -> Any:
        """A point behind all copies queued so far."""
        return self.stream.record_event() if self._module else None

    def compute_after(self, mark: Any) -> None:
        """What is queued for computing from now on waits for that point; the program does not."""
        if mark is not None:
            self._module.current_stream(self.device).wait_event(mark)

    def wait(self) -> None:
        """The program waits until all copies are done."""
        if self._module is not None:
            self.stream.synchronize()

    def kept_until_copied(self, tensor: Tensor) -> None:
        """The device's allocator gives a tensor's memory away no earlier than the copies queued so
        far are done."""
        if self._module is not None:
            tensor.record_stream(self.stream)

    def buffer(self, size: int) -> Tensor:
        """So many bytes of RAM, where the device can reach them by itself if the system allows
        that: else copies are made as well, but the program waits for them."""
        # Pages of its own: a page can be pinned only once.
        pages = -(-size // PAGESIZE) * PAGESIZE
        whole = torch.empty(pages + PAGESIZE, dtype=torch.uint8)
        begin = -whole.data_ptr() % PAGESIZE
        made = whole[begin : begin + size]
        if self.device.type == "cuda" and size:
            # Not torch's own pinned memory, which is rounded up to the next power of two.
            system, where = self._module.cudart(), made.data_ptr()
            if int(system.cudaHostRegister(where, pages, 0)) == 0:
                weakref.finalize(made, system.cudaHostUnregister, where).atexit = False
            elif self._pins:
                self._pins = False
                log.warning("the system pins no more RAM for the GPU: streaming is slower")
        return made


@dataclass(frozen=True)
class Place:
    """Where in a buffer a tensor lies."""

    tensor: Tensor
    begin: int
    end: int
    stride: tuple[int, ...]

    def within(self, buffer: Tensor) -> Tensor:
        """The part of a buffer of bytes that is this tensor."""
        found = buffer[self.begin : self.end].view(self.tensor.dtype)
        return found.as_strided(self.tensor.shape, self.stride)


class Slab:
    """The tensors of one block: side by side in RAM always, and on the device for a while.

    Args:
        tensors: parameters and buffers, in RAM. Their ``data`` moves into the slab.
        lane: between the two sides.
    """

    def __init__(self, tensors: Sequence[Tensor], lane: Lane) -> None:
        self.tensors = list(tensors)
        self.states: list[States] = []
        self._lane = lane
        self._places = list(_side_by_side(self.tensors))
        self.size = self._places[-1].end if self._places else 0
        self._ram = lane.buffer(self.size)
        self._in_ram = [place.within(self._ram) for place in self._places]
        for tensor, there in zip(self.tensors, self._in_ram, strict=True):
            tensor.data = there.copy_(tensor.data)
        self._device: Tensor | None = None
        self._on_device: list[Tensor] = []
        self._loaded: Any = None
        self._is_here = False

    @property
    def on_device(self) -> int:
        """Bytes of the device's memory that it takes now."""
        return 0 if self._device is None else self._device.untyped_storage().nbytes()

    def load(self, *, states: bool) -> None:
        """Sends for the block, and for the optimizer's states with it, where they are not here."""
        if self._is_here and not (states and self.states):
            return
        with self._lane.copying():
            if not self._is_here:
                self._fill().copy_(self._ram, non_blocking=True)
                self._point(self._on_device)
                self._is_here = True
            if states:
                for each in self.states:
                    each.load(self._lane.device)
        self._loaded = self._lane.mark()

    def ready(self) -> None:
        """What is computed from now on finds the block on the device."""
        self._lane.compute_after(self._loaded)

    def evict(self, *, changed: bool) -> None:
        """Frees the device's memory. What changed there is copied back first."""
        if not self._is_here:
            return
        assert self._device is not None
        if changed or self.states:
            with self._lane.copying():
                if changed:
                    self._ram.copy_(self._device, non_blocking=True)
                for each in self.states:
                    each.evict(self._lane, changed=changed)
        self._point(self._in_ram)
        # The memory was taken on the copies' stream, where whatever takes it next is queued behind
        # what computes with it now (Lane.copying).
        self._device.untyped_storage().resize_(0)
        self._is_here = False

    def _fill(self) -> Tensor:
        """The device's buffer with memory behind it: the same storage each time, since autograd
        may hold views of it."""
        if self._device is None:
            self._device = torch.empty(self.size, dtype=torch.uint8, device=self._lane.device)
            self._on_device = [place.within(self._device) for place in self._places]
        else:
            self._device.untyped_storage().resize_(self.size)
        return self._device

    def _point(self, there: Sequence[Tensor]) -> None:
        for tensor, data in zip(self.tensors, there, strict=True):
            tensor.data = data


class States:
    """The optimizer's states of one weight."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], weight: Tensor) -> None:
        self._optimizer, self._group, self._weight = optimizer, group, weight
        self._ram: dict[str, Tensor] = {}

    @property
    def _all(self) -> dict[str, Any]:
        """Empty before the weight's first step."""
        found: dict[str, Any] = self._optimizer.state.get(self._weight, {})
        return found

    def load(self, device: torch.device) -> None:
        """Brings them to the device. A count of steps stays where the optimizer wants it."""
        state = self._all
        counts = () if self._group.get("fused") or self._group.get("capturable") else ("step",)
        for name, value in state.items():
            if not isinstance(value, Tensor) or name in counts:
                continue
            if value is self._ram.get(name) or value.device != device:
                state[name] = value.to(device, non_blocking=True, copy=True)

    def evict(self, lane: Lane, *, changed: bool) -> None:
        """Lets the large ones be in RAM again, where those that have changed are copied to."""
        state = self._all
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.numel() < FOLLOWS:
                continue
            if value.device != lane.device or value is self._ram.get(name):
                continue
            new = name not in self._ram
            if new:
                there = lane.buffer(value.numel() * value.element_size()).view(value.dtype)
                self._ram[name] = there.as_strided(value.shape, value.stride())
            if changed or new:
                lane.kept_until_copied(value)
                self._ram[name].copy_(value, non_blocking=True)
            state[name] = self._ram[name]


def spread(count: int, share: float) -> list[int]:
    """Which of so many blocks a share of them is, as evenly as can be: while those that stay
    compute, the others are on their way."""
    wanted = round(count * share)
    return [n for n in range(count) if (n + 1) * wanted // count > n * wanted // count]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _side_by_side(tensors: Sequence[Tensor]) -> Iterator[Place]:
    begin = 0
    for tensor in tensors:
        end = begin + tensor.numel() * tensor.element_size()
        # Permuted memory (channels_last) stays; memory with gaps or overlaps becomes plain.
        stride = torch.empty_like(tensor, device="meta").stride()
        yield Place(tensor, begin, end, stride)
        begin = -(-end // ALIGNMENT) * ALIGNMENT
