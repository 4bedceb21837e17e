"""Streaming: what is on the device at each moment, and that nothing of what is learned changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.checkpoint import checkpoint

from dreambooth_core.memory.streaming import Streaming, spread
from dreambooth_core.optim.stepper import only, step_in_backward

CPU = torch.device("cpu")
WIDTH, BLOCKS, STEPS = 64, 6, 4
BLOCK_BYTES = 2 * 4 * (WIDTH * WIDTH + WIDTH)


class Block(nn.Module):
    """Two streams in, two out, as in most transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return hidden + self.second(torch.relu(self.first(hidden + text))), text * 1.1


class Model(nn.Module):
    def __init__(self, *, checkpointed: bool) -> None:
        super().__init__()
        self.before = nn.Linear(8, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.after = nn.Linear(WIDTH, 8)
        self.checkpointed = checkpointed

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.before(inputs)
        text = hidden.mean(1, keepdim=True)
        for block in self.blocks:
            if self.checkpointed:
                hidden, text = checkpoint(block, hidden, text, use_reentrant=False)
            else:
                hidden, text = block(hidden, text)
        found: Tensor = self.after(hidden)
        return found


def made(*, checkpointed: bool, trained: bool) -> Model:
    torch.manual_seed(0)
    model = Model(checkpointed=checkpointed)
    for block in model.blocks:
        block.requires_grad_(trained)
    return model


def learned(model: Model, streaming: Streaming | None, *, fused: bool) -> list[float]:
    """Losses of a few steps."""
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    if streaming:
        streaming.with_states_of(optimizer)

    def step(group: dict[str, object], parameter: nn.Parameter) -> None:
        with only(optimizer, group, parameter):
            optimizer.step()

    if fused:
        step_in_backward(optimizer, step)
    losses = []
    for seed in range(STEPS):
        torch.manual_seed(seed)
        loss = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        if not fused:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@contextmanager
def watched(model: Model, look: Callable[[], None]) -> Iterator[None]:
    """Looks whenever a linear layer begins to compute and whenever a gradient leaves one."""
    layers = [m for block in model.blocks for m in block.children()]
    handles = [layer.register_forward_pre_hook(lambda *_: look()) for layer in layers]
    handles += [layer.register_full_backward_hook(lambda *_: look()) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_two_blocks_are_there_at_a_time_and_losses_are_the_same(
    checkpointed: bool, trained: bool
) -> None:
    plain = learned(made(checkpointed=checkpointed, trained=trained), None, fused=trained)
    model = made(checkpointed=checkpointed, trained=trained)
    streaming = Streaming(model, list(model.blocks), CPU, trained=trained)
    seen: list[list[int]] = []
    with watched(model, lambda: seen.append(streaming.on_device)):
        streamed = learned(model, streaming, fused=trained)
    assert streamed == plain
    assert len(seen) > 2 * STEPS * BLOCKS
    assert max(sum(each) for each in seen) == 2 * BLOCK_BYTES
    streaming.settle()
    assert streaming.on_device == [0] * BLOCKS


def test_a_block_is_there_before_its_turn_once_the_order_is_known() -> None:
    model = made(checkpointed=False, trained=False)
    there: list[bool] = []
    streaming: Streaming
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(
            lambda *_, n=number: there.append(streaming.on_device[n] > 0)
        )
    streaming = Streaming(model, list(model.blocks), CPU)
    learned(model, streaming, fused=False)
    assert there[:BLOCKS] == [False] * BLOCKS
    assert all(there[2 * BLOCKS :])


@pytest.mark.parametrize("trained", [False, True])
def test_weights_and_states_end_as_without(trained: bool) -> None:
    plain = made(checkpointed=False, trained=trained)
    learned(plain, None, fused=trained)
    model = made(checkpointed=False, trained=trained)
    streaming = Streaming(model, list(model.blocks), CPU, trained=trained)
    learned(model, streaming, fused=trained)
    streaming.settle()
    for (name, weight), (_, wanted) in zip(
        model.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.equal(weight, wanted), name
    streaming.close()
    inputs = torch.randn(2, 8)
    assert torch.equal(model(inputs), plain(inputs))
    assert streaming.on_device == [0] * BLOCKS  # nothing comes to the device any more


def test_what_is_written_after_settling_is_what_computes() -> None:
    model = made(checkpointed=False, trained=True)
    streaming = Streaming(model, list(model.blocks), CPU, trained=True)
    learned(model, streaming, fused=True)
    streaming.settle()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    other = made(checkpointed=False, trained=True)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(0.01)
        inputs = torch.randn(2, 8)
        assert torch.equal(model(inputs), other(inputs))


def test_adapters_inside_a_block_stay_on_the_device() -> None:
    model = made(checkpointed=False, trained=False)
    adapter = nn.Linear(WIDTH, WIDTH, bias=False)
    model.blocks[2].add_module("adapter", adapter)
    where = adapter.weight.data_ptr()
    Streaming(model, list(model.blocks), CPU)
    with torch.no_grad():
        model(torch.randn(2, 8))
    assert adapter.weight.data_ptr() == where


def test_a_share_is_spread_over_the_model() -> None:
    assert spread(8, 0.5) == [1, 3, 5, 7]
    assert spread(8, 1) == list(range(8))
    assert spread(8, 0) == []
    assert spread(10, 0.3) == [3, 6, 9]


def test_permuted_and_mixed_tensors_keep_their_form() -> None:
    convolution = nn.Conv2d(4, 8, 3)
    permuted = convolution.weight.data.to(memory_format=torch.channels_last)
    convolution.weight.data = permuted
    block = nn.Sequential(convolution, nn.BatchNorm2d(8))
    model = nn.Sequential(block).requires_grad_(False).eval()
    inputs = torch.randn(1, 4, 5, 5)
    before = model(inputs)
    Streaming(model, [block], CPU)
    assert torch.equal(model(inputs), before)
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert block[1].num_batches_tracked.dtype == torch.int64
