"""GGUF files: their header, and their weights as plain numbers.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Weights lie in blocks of 32
or 256 numbers, each with factors of its own (``ggml-common.h`` and ``ggml-quants.c`` there). Names
and shapes are those of the hosts' own files, as ComfyUI-GGUF writes them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import Unsupported, UserError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LARGEST = 200_000
"""Tensors and facts in one file, at most."""
_LONGEST = 64_000_000
"""Bytes of one text, at most; a tokenizer's list is many texts."""
_MOST_DIMENSIONS = 8
_ORIGINAL = "comfy.gguf.orig_shape."
"""Before the name of a tensor that was stored in another shape."""
_SIMPLE = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class Kind:
    """How a block of numbers is stored."""

    name: str
    numbers: int
    """In a block."""
    bytes: int
    read: Callable[[Tensor], Tensor]
    """Numbers ``[blocks, numbers]`` in fp32, of bytes ``[blocks, bytes]``."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    shape: tuple[int, ...]
    kind: Kind
    start: int
    """Of its first byte in the file."""

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) // self.kind.numbers * self.kind.bytes


def _spread(values: Tensor, bits: int, run: int) -> Tensor:
    """Small numbers of ``bits`` each from bytes ``[n, k]``: of every run of bytes first the lowest
    bits of all, then the next, ``[n, k * 8 / bits]``."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    planes = values.reshape(len(values), -1, 1, run) >> shifts.view(1, 1, -1, 1)
    return (planes & (2**bits - 1)).reshape(len(values), -1).to(torch.int16)


def _half(values: Tensor) -> Tensor:
    """fp32 of two bytes each, ``[n, 1]``."""
    return values.contiguous().view(torch.float16).float()


def _plain(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    return lambda blocks: blocks.contiguous().view(dtype).float()


def _small(*, high: bool, least: bool) -> Callable[[Tensor], Tensor]:
    """Blocks of 32 with 4 bits each, or 5 with ``high`` ones apart; they begin at a ``least``
    number of the block's own, or lie about zero."""

    def read(blocks: Tensor) -> Tensor:
        factor, numbers = _half(blocks[:, :2]), _spread(blocks[:, -16:], 4, 16)
        if high:
            # The fifth bits, of the first number lowest.
            numbers = numbers | (_spread(blocks[:, -20:-16], 1, 1) << 4)
        if least:
            return factor * numbers + _half(blocks[:, 2:4])
        return factor * (numbers - (16 if high else 8))

    return read


def _eight(blocks: Tensor) -> Tensor:
    return _half(blocks[:, :2]) * blocks[:, 2:].contiguous().view(torch.int8)


def _grouped(factors: Tensor, numbers: Tensor) -> Tensor:
    """Numbers ``[n, 256]`` times the factor of their group, ``[n, groups]``."""
    groups = factors.shape[1]
    return (factors.unsqueeze(2) * numbers.reshape(len(numbers), groups, -1)).flatten(1)


def _two(blocks: Tensor) -> Tensor:
    scales, numbers = blocks[:, :16], _spread(blocks[:, 16:80], 2, 32)
    factor, least = _half(blocks[:, 80:82]), _half(blocks[:, 82:84])
    starts = least * (scales >> 4)
    return _grouped(factor * (scales & 15), numbers) - _grouped(starts, torch.ones_like(numbers))


def _three(blocks: Tensor) -> Tensor:
    upper = _spread(blocks[:, :32], 1, 32)
    numbers = _spread(blocks[:, 32:96], 2, 32)
    low, high = _spread(blocks[:, 96:104], 4, 8), _spread(blocks[:, 104:108], 2, 4)
    factor = _half(blocks[:, 108:110])
    return _grouped(factor * ((low | (high << 4)) - 32), numbers - ((upper ^ 1) << 2))


def _scales_and_starts(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight factors and eight starts of 6 bits each from 12 bytes."""
    first, second, third = packed.to(torch.int16).split(4, dim=1)
    return (
        torch.cat([first & 63, (third & 15) | ((first >> 2) & 48)], dim=1),
        torch.cat([second & 63, (third >> 4) | ((second >> 2) & 48)], dim=1),
    )


def _four_or_five(*, high: bool) -> Callable[[Tensor], Tensor]:
    def read(blocks: Tensor) -> Tensor:
        factor, least = _half(blocks[:, :2]), _half(blocks[:, 2:4])
        scales, starts = _scales_and_starts(blocks[:, 4:16])
        numbers = _spread(blocks[:, -128:], 4, 32)
        if high:
            numbers = numbers | (_spread(blocks[:, 16:48], 1, 32) << 4)
        ones = torch.ones_like(numbers)
        return _grouped(factor * scales, numbers) - _grouped(least * starts, ones)

    return read


def _six(blocks: Tensor) -> Tensor:
    numbers = _spread(blocks[:, :128], 4, 64) | (_spread(blocks[:, 128:192], 2, 32) << 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8)
    return _grouped(_half(blocks[:, 208:210]) * scales, numbers - 32)


KINDS: Mapping[int, Kind] = {
    0: Kind("F32", 1, 4, _plain(torch.float32)),
    1: Kind("F16", 1, 2, _plain(torch.float16)),
    2: Kind("Q4_0", 32, 18, _small(high=False, least=False)),
    3: Kind("Q4_1", 32, 20, _small(high=False, least=True)),
    6: Kind("Q5_0", 32, 22, _small(high=True, least=False)),
    7: Kind("Q5_1", 32, 24, _small(high=True, least=True)),
    8: Kind("Q8_0", 32, 34, _eight),
    10: Kind("Q2_K", 256, 84, _two),
    11: Kind("Q3_K", 256, 110, _three),
    12: Kind("Q4_K", 256, 144, _four_or_five(high=False)),
    13: Kind("Q5_K", 256, 176, _four_or_five(high=True)),
    14: Kind("Q6_K", 256, 210, _six),
    30: Kind("BF16", 1, 2, _plain(torch.bfloat16)),
}
"""By the number in the file."""


def read_index(path: Path) -> dict[str, Entry]:
    """What lies where in a GGUF file.

    Raises:
        UserError: it is damaged or cut short.
        Unsupported: another version, or a tensor in a form that is not read.
    """
    with open_regular(path) as file:
        reader = _Reader(file, path)
        if reader.take(len(MAGIC)) != MAGIC:
            raise UserError("this is not a GGUF file", where=path)
        version = reader.number("I")
        if version not in _VERSIONS:
            raise Unsupported(f"this GGUF file has version {version}", where=path, do="Get it anew")
        tensors, facts = reader.count(), reader.count()
        said = dict(reader.fact() for _ in range(facts))
        entries = [reader.tensor() for _ in range(tensors)]
        step = int(said.get("general.alignment", 32))
        if not 1 <= step <= 1 << 20:
            raise _damaged(f"alignment {step}", path)
        begin = -(-file.tell() // step) * step
        end = file.seek(0, 2)
    found = {}
    for name, shape, number, offset in entries:
        kind = KINDS.get(number)
        if kind is None:
            raise Unsupported(
                f"this GGUF file is quantised in a way that is not read (kind {number} of {name})",
                where=path,
                do=f"Get it as one of {', '.join(each.name for each in KINDS.values())}, or as "
                ".safetensors.",
            )
        if math.prod(shape) % kind.numbers:
            raise _damaged(f"{name} does not fill its last block", path)
        whole = said.get(_ORIGINAL + name)
        if isinstance(whole, list) and math.prod(map(int, whole)) == math.prod(shape):
            shape = tuple(map(int, whole))
        found[name] = entry = Entry(shape, kind, begin + offset)
        if entry.start + entry.size > end:
            raise UserError(
                f"this GGUF file is cut short: {name} should end at byte "
                f"{entry.start + entry.size:,} of {end:,}",
                where=path,
                do="Download or copy it again.",
            )
    return found


def read_tensor(file: BinaryIO, entry: Entry) -> Tensor:
    """One tensor as fp32 numbers."""
    file.seek(entry.start)
    raw = torch.frombuffer(bytearray(file.read(entry.size)), dtype=torch.uint8)
    return entry.kind.read(raw.reshape(-1, entry.kind.bytes)).reshape(entry.shape)


def _damaged(how: str, path: Path) -> UserError:
    return UserError(f"this GGUF file is damaged: {how}", where=path)


class _Reader:
    """Reads the header's numbers and texts, within limits."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path

    def take(self, count: int) -> bytes:
        if not 0 <= count <= _LONGEST:
            raise _damaged("a text without an end", self.path)
        data = self.file.read(count)
        if len(data) != count:
            raise UserError(
                "this GGUF file is cut short", where=self.path, do="Download or copy it again."
            )
        return data

    def number(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]

    def count(self) -> int:
        found = int(self.number("Q"))
        if found > _LARGEST:
            raise _damaged(f"{found:,} entries", self.path)
        return found

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def fact(self) -> tuple[str, Any]:
        name = self.text()
        return name, self.value(self.number("I"))

    def value(self, kind: int, deep: int = 0) -> Any:
        if kind in _SIMPLE:
            return self.number(_SIMPLE[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST or deep > 2:
            raise _damaged(f"a fact of kind {kind}", self.path)
        inner, many = self.number("I"), self.number("Q")
        if many > _LONGEST:
            raise _damaged(f"a list of {many:,}", self.path)
        if inner in _SIMPLE:
            form = f"{many}{_SIMPLE[inner]}"
            return list(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"))))
        return [self.value(inner, deep + 1) for _ in range(many)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape from the slowest dimension on, number of its kind, first byte."""
        name, dimensions = self.text(), self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise _damaged(f"{dimensions} dimensions", self.path)
        shape = [int(self.number("Q")) for _ in range(dimensions)]
        return name, tuple(reversed(shape)), int(self.number("I")), int(self.number("Q"))
