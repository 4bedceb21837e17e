"""The networks in a file of a host: one alone, or several behind prefixes.

Only the header is read until the weights are asked for. They are then views on the memory map, but
for 8-bit floating point, which is made bf16 weight by weight, with the scales that ComfyUI stores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import Unsupported
from dreambooth_core.formats import gguf
from dreambooth_core.formats.eight_bits import MARKS, is_fp8, scale_of, scaled
from dreambooth_core.formats.quantised import ADVICE, quantised_by
from dreambooth_core.formats.storage import DTYPES, Stored, read_header, read_tensors

_PREFIX = re.compile(
    r"((model\.diffusion_model|net)\.)?llm_adapter\.|(model\.diffusion_model|net)\.|vae\.|first_stage_model\.|text_encoders\.[^.]+\.transformer\."
)
_BESIDE = re.compile(r"text_encoders\.[^.]+\.(?!transformer\.)")
"""What stands beside a text encoder and is no part of it, such as CLIP's logit scale."""
_AT_ONCE = 16
"""8-bit weights between two openings of their file."""


@dataclass(frozen=True)
class Piece:
    """One network in a file, by its names there without the prefix."""

    path: Path
    prefix: str
    entries: Mapping[str, Stored]
    scales: Mapping[str, str]
    """The whole name of the scale of each weight that has one."""

    @property
    def dtype(self) -> torch.dtype:
        """The precision of most of its values, once read."""
        sizes: Counter[torch.dtype] = Counter()
        for entry in self.entries.values():
            if DTYPES[entry.dtype].is_floating_point:
                read = DTYPES[entry.dtype]
                sizes[torch.bfloat16 if is_fp8(read) else read] += math.prod(entry.shape)
        return sizes.most_common(1)[0][0] if sizes else torch.float32

    def shapes(self) -> dict[str, Tensor]:
        """Tensors without data, on the meta device."""
        dtype = self.dtype  # counted anew each time
        return {
            name: torch.empty(entry.shape, dtype=dtype, device="meta")
            for name, entry in self.entries.items()
        }

    def one(self, name: str) -> Tensor:
        """A single tensor as it is stored."""
        return read_tensors(self.path, [self.prefix + name])[self.prefix + name]

    def tensors(self) -> dict[str, Tensor]:
        """The weights, all in :attr:`dtype`."""
        if any(is_fp8(DTYPES[entry.dtype]) for entry in self.entries.values()):
            return self._widened()
        dtype, prefix = self.dtype, self.prefix
        found = read_tensors(self.path, [prefix + name for name in self.entries])
        return {name: _cast(found[prefix + name], dtype) for name in self.entries}

    def _widened(self) -> dict[str, Tensor]:
        """Copies; the memory map is let go every few weights, so that the 8-bit file does not
        stay in memory beside them."""
        result: dict[str, Tensor] = {}
        names, dtype = list(self.entries), self.dtype
        for start in range(0, len(names), _AT_ONCE):
            some = names[start : start + _AT_ONCE]
            scales = [self.scales[name] for name in some if name in self.scales]
            found = read_tensors(self.path, [*(self.prefix + name for name in some), *scales])
            for name in some:
                value = found[self.prefix + name]
                if name in self.scales:
                    value = scaled(value, found[self.scales[name]])
                cast = _cast(value, dtype)
                result[name] = cast.clone() if cast is value else cast
        return result


@dataclass(frozen=True)
class QuantisedPiece(Piece):
    """The denoiser of a GGUF file, read as bf16."""

    index: Mapping[str, gguf.Entry] = field(default_factory=dict)

    def tensors(self) -> dict[str, Tensor]:
        """Copies in bf16, made tensor by tensor."""
        with open_regular(self.path) as file:
            return {
                name: gguf.read_tensor(file, entry).to(torch.bfloat16)
                for name, entry in self.index.items()
            }


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def pieces_of(path: Path) -> list[Piece]:
    """The networks in a safetensors file.

    Raises:
        UserError: it is damaged, or cut short.
        Unsupported: it is quantised in a way that cannot be trained from.
    """
    header = read_header(path)
    whole = (
        f"whole numbers ({entry.dtype})"
        for name, entry in header.tensors.items()
        if name.endswith(".weight") and not DTYPES[entry.dtype].is_floating_point
    )
    method = quantised_by({name: entry.shape for name, entry in header.tensors.items()})
    if method := method or next(whole, None):
        raise Unsupported(
            f"the weights in this file are quantised by {method}", where=path, do=f"{ADVICE}."
        )
    found: dict[str, tuple[dict[str, Stored], dict[str, str]]] = {}
    for name, entry in header.tensors.items():
        if MARKS.search(name) or _BESIDE.match(name):
            continue
        match = _PREFIX.match(name)
        prefix = match[0] if match else ""
        entries, scales = found.setdefault(prefix, ({}, {}))
        entries[name.removeprefix(prefix)] = entry
        scale = scale_of(name, header.tensors) if is_fp8(DTYPES[entry.dtype]) else None
        if scale is not None:
            scales[name.removeprefix(prefix)] = scale
    return [Piece(path, prefix, *inside) for prefix, inside in found.items()]


def gguf_pieces(path: Path) -> list[Piece]:
    """The network in a GGUF file: such files hold one.

    Raises:
        UserError: as :func:`~dreambooth_core.formats.gguf.read_index`.
    """
    index = gguf.read_index(path)
    entries = {name: Stored("BF16", entry.shape, 0, 0) for name, entry in index.items()}
    return [QuantisedPiece(path, "", entries, {}, index)]
