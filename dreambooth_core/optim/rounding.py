"""Steps in fp32 on weights that are kept in bf16.

bf16 has 8 significant bits, so a step smaller than about 1/256 of a weight is lost when it is
rounded to the nearest. Rounded up or down by chance, in proportion to the distance, it is right
on average (Gupta et al. 2015, arXiv:1502.02551; for bf16 weights Zamirai et al. 2020,
arXiv:2010.06192).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn


def round_into(target: Tensor, source: Tensor, generator: Generator) -> None:
    """Writes ``source`` (fp32) into ``target`` (bf16, same shape), rounded stochastically.

    bf16 is the upper half of fp32: adding a random number below 2**16 to the bits carries into
    the upper half with exactly the right probability. Values that bf16 holds stay as they are.
    """
    bits = torch.randint(
        0, 1 << 16, source.shape, dtype=torch.int32, device=source.device, generator=generator
    )
    bits += source.contiguous().view(torch.int32)
    bits &= -65536
    target.copy_(bits.view(torch.float32))


@contextmanager
def as_fp32(parameters: list[nn.Parameter], generators: list[Generator]) -> Iterator[None]:
    """Inside, bf16 parameters and their gradients are fp32; afterwards rounded stochastically.

    An optimizer that steps inside makes its states in fp32. The gradients are gone afterwards.
    """
    kept: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        kept.append(parameter.data)
        parameter.grad = None
        parameter.data = parameter.data.float()
        parameter.grad = None if gradient is None else gradient.float()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original, generator in zip(parameters, kept, generators, strict=True):
                stepped = parameter.data
                moved = parameter.grad is not None
                parameter.grad = None
                parameter.data = original
                if moved:
                    round_into(original, stepped, generator)
