"""Where encoded images and captions are kept: memory, disk, or nowhere.

A value is a tree of dicts, lists and tuples with tensors, numbers, texts and ``None`` as leaves.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import SaveFailed

log = logging.getLogger(__name__)


class Store(Protocol):
    """Keeps values by key. What it lost, or cannot read, is simply not there."""

    def get(self, key: str) -> Any | None:
        """The value, or ``None``. It is shared: do not change it in place."""

    def put(self, key: str, value: Any) -> None:
        """Keep a value, as well as can be."""

    def has(self, key: str) -> bool:
        """Whether :meth:`get` is likely to give a value; cheap."""


class NoStore:
    """Keeps nothing: everything is encoded anew."""

    def get(self, key: str) -> Any | None:
        """Always ``None``."""
        return None

    def put(self, key: str, value: Any) -> None:
        """Does nothing."""

    def has(self, key: str) -> bool:
        """Always false."""
        return False


class MemoryStore:
    """Keeps values in memory; beyond ``limit`` bytes, those used longest ago are dropped."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.size = 0
        self._values: OrderedDict[str, tuple[Any, int]] = OrderedDict()

    def get(self, key: str) -> Any | None:
        """The very object that was put."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: str, value: Any) -> None:
        """Keep a value and, if the limit asks for it, drop others."""
        if key in self._values:
            self.size -= self._values.pop(key)[1]
        size = _bytes_of(value)
        self._values[key] = (value, size)
        self.size += size
        while self.limit is not None and self.size > self.limit and len(self._values) > 1:
            self.size -= self._values.popitem(last=False)[1][1]

    def has(self, key: str) -> bool:
        """Whether it is still there."""
        return key in self._values


class DiskStore:
    """Keeps each value in a file of its own, whole or not at all, with a checksum.

    A file that is damaged or of another version counts as missing, with a warning. A disk that is
    full ends nothing: from then on new values are kept in memory.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._fallback: MemoryStore | None = None

    def get(self, key: str) -> Any | None:
        """The value as it was put, on the CPU."""
        if self._fallback is not None and self._fallback.has(key):
            return self._fallback.get(key)
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("cache file %s cannot be read (%s); made anew", path, error.strerror)
            return None
        try:
            return unpack(content, key)
        except ValueError as error:
            log.warning("cache file %s is damaged (%s); made anew", path, error)
            return None

    def put(self, key: str, value: Any) -> None:
        """Write the value's file."""
        if self._fallback is None:
            try:
                write_bytes(self._path(key), pack(value, key))
                return
            except SaveFailed as error:
                log.warning("%s. Caching continues in memory.", error.line)
                self._fallback = MemoryStore()
        self._fallback.put(key, value)

    def has(self, key: str) -> bool:
        """Whether there is a file; whether it is sound shows when it is read."""
        return (self._fallback is not None and self._fallback.has(key)) or self._path(key).is_file()

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.cache"


def make_store(mode: str, folder: Path | str | None = None, limit: int | None = None) -> Store:
    """The store for ``DataOptions.cache``: ``memory``, ``disk`` (needs a folder) or ``none``."""
    if mode == "disk":
        if folder is None:
            raise ValueError("a disk cache needs a folder")
        return DiskStore(folder)
    return MemoryStore(limit) if mode == "memory" else NoStore()


def pack(value: Any, key: str) -> bytes:
    """A value as bytes: a line of JSON (version, key, checksum, shape of the tree), then tensors.

    Raises:
        TypeError: The tree holds something else than the kinds named above.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(value, tensors)
    payload = save(tensors)
    digest = _checksum(tree, payload)
    head = {"version": 1, "key": key, "checksum": digest, "tree": tree}
    return json.dumps(head).encode() + b"\n" + payload


def unpack(content: bytes, key: str) -> Any:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: The bytes are damaged, of another version, or of another key.
    """
    line, found, payload = content.partition(b"\n")
    try:
        head = json.loads(line)
        if not found or head["version"] != 1 or head["key"] != key:
            raise ValueError("another version or key")
        if head["checksum"] != _checksum(head["tree"], payload):
            raise ValueError("the checksum differs")
        return _unflatten(head["tree"], load(payload))
    except (KeyError, TypeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _checksum(tree: Any, payload: bytes) -> str:
    digest = hashlib.blake2b(payload, digest_size=16)
    digest.update(json.dumps(tree, sort_keys=True).encode())
    return digest.hexdigest()


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON that describes the tree; its tensors go into ``tensors`` by number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory or are not contiguous.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only texts can be keys of what is cached")
        return {"dict": {key: _flatten(item, tensors) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_flatten(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{type(value).__name__} cannot be cached on disk")


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, inside),) = tree.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in inside.items()}
    if kind == "value":
        return inside
    items = [_unflatten(item, tensors) for item in inside]
    return tuple(items) if kind == "tuple" else items


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(_bytes_of(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return sum(_bytes_of(item) for item in value)
    return 64
