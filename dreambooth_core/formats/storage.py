"""Safetensors files: read through a memory map, written tensor by tensor.

The format (https://github.com/huggingface/safetensors): eight bytes with the header's length, a
JSON header that gives each tensor's dtype, shape and byte range, then the bytes. Writing is done
here and not by the library because its writer wants every tensor in memory at once, leaves the
file readable by its owner alone and is not atomic.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from dreambooth_core.disk import replacing
from dreambooth_core.disk.reading import open_regular, parse_json, unreadable
from dreambooth_core.errors import SaveFailed, Unsupported, UserError
from dreambooth_core.formats.privacy import cleaned

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
"""Safetensors' dtype names and torch's."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 32_000_000
"""Bytes; a longer header is refused. Real ones have some hundred thousand."""
MAX_TENSORS = 200_000
"""More tensors in one file are refused."""
MAX_DIMENSIONS = 16
"""A tensor with more is refused; weights have at most five."""


@dataclass(frozen=True)
class Stored:
    """One tensor's entry in a header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the end of the header."""
    end: int


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: dict[str, Stored]
    metadata: dict[str, str]
    data_start: int
    """Where in the file the bytes begin."""

    @property
    def size(self) -> int:
        """Bytes that the whole file must have."""
        return self.data_start + max((t.end for t in self.tensors.values()), default=0)


@dataclass(frozen=True)
class Lazy:
    """A tensor that is made when it is needed, and whose shape and dtype are known before."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], torch.Tensor]

    def __call__(self) -> torch.Tensor:
        """Makes the tensor."""
        return self.make()


TensorLike = torch.Tensor | Lazy


def read_header(path: str | Path) -> Header:
    """The header alone; nothing of the tensors is read.

    Raises:
        UserError: no such file, not a safetensors file, a damaged header, a truncated file.
    """
    path = Path(path)
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(9)
            length = struct.unpack("<Q", prefix[:8])[0] if len(prefix) == 9 else 0
            if length < 2 or prefix[8:] != b"{":
                raise UserError("not a safetensors file", where=path)
            if length > MAX_HEADER:
                raise UserError(
                    f"not a safetensors file: its header would have {length:,} bytes", where=path
                )
            if size < 8 + length:
                raise _truncated(path, size, 8 + length)
            text = b"{" + file.read(length - 1)
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        header = _parse(parse_json(text, limit=MAX_HEADER), 8 + length)
    except Unsupported as error:
        raise Unsupported(error.what, where=path, do=error.do) from error
    except ValueError as error:
        raise UserError(
            f"the header of this safetensors file is damaged ({error})",
            where=path,
            do="Download or save it again",
        ) from error
    if size < header.size:
        raise _truncated(path, size, header.size)
    if size > header.size:
        raise UserError(
            f"this file is damaged: {size - header.size:,} bytes follow its last tensor",
            where=path,
            do="Download or save it again",
        )
    return header


def read_metadata(path: str | Path) -> dict[str, str]:
    """The text metadata of a safetensors file. Raises ``UserError`` as :func:`read_header`."""
    return read_header(path).metadata


def read_tensors(
    path: str | Path, names: Iterable[str] | None = None, *, copy: bool = False
) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, or those in ``names``, in the file's order.

    The tensors are views on a private memory map: nothing is read before it is used, and
    changing one does not change the file. With ``copy`` they are read into memory at once, which
    lets Windows replace the file while they live.

    Raises:
        UserError: as :func:`read_header`, or a name in ``names`` is not in the file.
    """
    path = Path(path)
    header = read_header(path)
    wanted = list(header.tensors if names is None else names)
    missing = [name for name in wanted if name not in header.tensors]
    if missing:
        raise UserError(f"there is no tensor {missing[0]!r} in this file", where=path)
    wanted.sort(key=lambda name: header.tensors[name].start)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise UserError(f"could not read this safetensors file ({error})", where=path) from error
    if copy:
        return {name: tensor.clone() for name, tensor in tensors.items()}
    return tensors


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, TensorLike],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, one tensor after the other, whole or not at all.

    Metadata is written without paths of this machine (:mod:`dreambooth_core.formats.privacy`).

    A :class:`Lazy` value is made when its turn comes and dropped again, so the peak in memory
    is the largest tensor.

    Raises:
        SaveFailed: the disk is full, the place may not be written, or a tensor is not of the
            kind that the format holds. What was there before is intact.
    """
    path = Path(path)
    # Wide dtypes first: every tensor then starts at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, offset = _header_of(path, names, tensors, cleaned(metadata or {}))
    with replacing(path) as file:
        file.write(header)
        for name in names:
            value = tensors[name]
            tensor = value() if isinstance(value, Lazy) else value
            if tuple(tensor.shape) != tuple(value.shape) or tensor.dtype != value.dtype:
                raise SaveFailed(f"tensor {name} changed while it was being saved", where=path)
            _write_tensor(file, tensor)
        if file.tell() != len(header) + offset:
            raise SaveFailed("the file came out with a wrong length", where=path)


def _write_tensor(file: BinaryIO, tensor: torch.Tensor) -> None:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    if flat.numel():
        file.write(flat.view(torch.uint8).numpy().data)


def _header_of(
    path: Path, names: list[str], tensors: Mapping[str, TensorLike], metadata: Mapping[str, str]
) -> tuple[bytes, int]:
    entries: dict[str, Any] = {}
    if metadata:
        entries["__metadata__"] = {str(key): str(value) for key, value in metadata.items()}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES:
            raise SaveFailed(f"tensor {name} is of type {tensor.dtype}", where=path)
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
            raise SaveFailed(f"tensor {name} holds no data (meta device)", where=path)
        size = math.prod(tensor.shape) * tensor.dtype.itemsize
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offset


def _parse(entries: dict[str, Any], data_start: int) -> Header:
    """A header from its JSON. Raises ``ValueError``, and ``Unsupported`` for a strange dtype."""
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not text by name")
    if len(entries) > MAX_TENSORS:
        raise ValueError(f"{len(entries):,} tensors, at most {MAX_TENSORS:,}")
    tensors = {name: _stored(name, entry) for name, entry in entries.items()}
    end = 0
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if stored.start != end:
            fault = "overlaps another" if stored.start < end else "leaves bytes unused before it"
            raise ValueError(f"{name!r} {fault}")
        end = stored.end
    return Header(tensors, metadata, data_start)


def _stored(name: str, entry: Any) -> Stored:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name!r} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not _is_counts(shape) or not _is_counts(offsets):
        raise ValueError(f"{name!r} has a dtype, shape or place that is none")
    if dtype not in DTYPES:
        raise Unsupported(
            f"tensor {name!r} is stored as {dtype!r}, a type that is not handled",
            do="Get the model in fp32, fp16 or bf16",
        )
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"{name!r} has {len(shape)} dimensions")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"{name!r}: bytes {offsets[:3]} for {dtype} {shape}")
    return Stored(dtype, tuple(shape), offsets[0], offsets[1])


def _is_counts(value: Any) -> bool:
    """Whether a value from JSON is a list of whole numbers that C can hold, none negative."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _truncated(path: Path, size: int, wanted: int) -> UserError:
    return UserError(
        f"this file is cut short: {size:,} of {wanted:,} bytes are there",
        where=path,
        do="Download or copy it again",
    )
