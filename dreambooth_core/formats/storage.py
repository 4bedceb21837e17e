"""Safetensors files: read through a memory map, written tensor by tensor.

The format (https://github.com/huggingface/safetensors): eight bytes with the header's length, a
JSON header that gives each tensor's dtype, shape and byte range, then the bytes. Writing is done
here and not by the library because its writer wants every tensor in memory at once, leaves the
file readable by its owner alone and is not atomic.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open

from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.formats.files import (
    replacing,
    sha256,
    write_bytes,
    write_json,
    write_text,
)

__all__ = [
    "Header",
    "Lazy",
    "Stored",
    "TensorLike",
    "read_header",
    "read_metadata",
    "read_tensors",
    "replacing",
    "sha256",
    "write_bytes",
    "write_json",
    "write_tensors",
    "write_text",
]

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
MAX_HEADER = 100_000_000
"""A longer header is refused, as the safetensors library does."""


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
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= MAX_HEADER:
                raise UserError("not a safetensors file", where=path)
            text = file.read(length)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not text.startswith(b"{"):
        raise UserError("not a safetensors file", where=path)
    if len(text) < length:
        raise _truncated(path, size, 8 + length)
    try:
        header = _parse(json.loads(text), 8 + length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the header of this safetensors file is damaged ({error})",
            where=path,
            do="Download or save it again",
        ) from error
    if size < header.size:
        raise _truncated(path, size, header.size)
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

    A :class:`Lazy` value is made when its turn comes and dropped again, so the peak in memory
    is the largest tensor.

    Raises:
        SaveFailed: the disk is full, the place may not be written, or a tensor is not of the
            kind that the format holds. What was there before is intact.
    """
    path = Path(path)
    # Wide dtypes first: every tensor then starts at a multiple of its own width.
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header, offset = _header_of(path, names, tensors, metadata or {})
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
    metadata = entries.pop("__metadata__", None) or {}
    tensors: dict[str, Stored] = {}
    for name, entry in entries.items():
        start, end = entry["data_offsets"]
        shape = tuple(int(n) for n in entry["shape"])
        dtype = entry["dtype"]
        if dtype in DTYPES and end - start != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(f"{name}: {end - start} bytes for {dtype} {list(shape)}")
        tensors[name] = Stored(dtype, shape, int(start), int(end))
    return Header(tensors, {str(k): str(v) for k, v in metadata.items()}, data_start)


def _unreadable(path: Path, error: OSError) -> UserError:
    if isinstance(error, FileNotFoundError):
        return UserError("no such file", where=path)
    if path.is_dir():
        return UserError("this is a folder, not a file", where=path)
    return UserError(f"could not read this file ({error.strerror or error})", where=path)


def _truncated(path: Path, size: int, wanted: int) -> UserError:
    return UserError(
        f"this file is cut short: {size:,} of {wanted:,} bytes are there",
        where=path,
        do="Download or copy it again",
    )
