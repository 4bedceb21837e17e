"""Follows a pickle's instructions without carrying them out, and refuses what torch would take.

``torch.load(weights_only=True)`` runs no code, but it believes sizes: a tensor of a billion
numbers over a storage of one, storages longer than the file, tuples that unfold into more than
any memory. Here the stack machine runs on names and numbers alone, before anything is allocated.
The instructions are those that torch's restricted unpickler knows.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import torch

from dreambooth_core.errors import Unsupported
from dreambooth_core.formats.storage import DTYPES, MAX_DIMENSIONS

MAX_INSTRUCTIONS = 1_000_000
"""A checkpoint with optimizer states has some hundred thousand."""
MAX_VALUES = 100_000
"""Values that a tuple may unfold into: its parts may repeat, and hashing visits each again."""

Room = Callable[[str], int | None]
"""Bytes that the file really has for a storage's key; ``None`` if there is no such storage."""

_PLAIN = {"collections.OrderedDict": "dict", "collections.Counter": "dict", "builtins.set": "set"}
_STORAGES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "ComplexFloat": 8,
}  # fmt: skip
_PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}


class Damaged(ValueError):
    """The pickle contradicts itself or the file."""


@dataclass(frozen=True)
class _Name:
    """A global: a class or a function."""

    full: str


@dataclass(frozen=True)
class _Thing:
    """Anything that the check needs no more of than its kind: dict, list, set, tensor, other."""

    kind: str


@dataclass(frozen=True)
class _Tuple:
    items: tuple[Any, ...]
    weight: int
    """Values inside, repeated ones counted each time."""


@dataclass(frozen=True)
class _Storage:
    bytes: int
    itemsize: int
    """1 where the tensor brings its own type."""


class Check:
    """One pickle stream. ``inert``: names that placeholders stand for."""

    def __init__(self, room: Room, inert: tuple[str, ...]) -> None:
        self.room, self.inert = room, inert
        self.needed: dict[str, int] = {}
        """Bytes by storage key, as the pickle says."""
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Reads one pickle up to its STOP and returns what stays on the stack.

        Raises:
            Unsupported: a global that is neither a tensor's nor a container's.
            Damaged: anything that contradicts itself or the file, or is out of all measure.
        """
        try:
            for count, (code, argument, _) in enumerate(pickletools.genops(file)):
                if count > MAX_INSTRUCTIONS:
                    raise Damaged("it has too many instructions")
                self._do(code.name, argument)
        except Damaged:
            raise
        except ValueError as error:  # cut, or no instruction
            raise Damaged("its instructions end in the middle or are none") from error
        except (IndexError, KeyError, TypeError, AttributeError) as error:
            raise Damaged("its instructions do not fit together") from error
        return self.stack.pop() if self.stack else None

    def _do(self, code: str, argument: Any) -> None:
        stack = self.stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _LITERALS:
            stack.append(argument)
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif code in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif code == "MARK":
            self.marks.append(stack)
            self.stack = []
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(code[-1])
            items = tuple(stack[-count:])
            if len(items) < count:
                raise Damaged("its instructions do not fit together")
            stack[-count:] = [_tuple(items)]
        elif code == "TUPLE":
            made = _tuple(tuple(stack))
            self.stack = self.marks.pop()
            self.stack.append(made)
        elif code in ("APPEND", "SETITEM"):
            self._fill(code, [stack.pop() for _ in range(1 + (code == "SETITEM"))][::-1])
        elif code in ("APPENDS", "SETITEMS"):
            self.stack = self.marks.pop()
            self._fill(code, stack)
        elif code == "GLOBAL":
            stack.append(self._named(argument))
        elif code == "BINPERSID":
            stack.append(self._stored(stack.pop()))
        elif code in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack[-1] = self._called(stack[-1], arguments)
        elif code == "BUILD":
            stack.pop()
            if stack[-1].kind not in ("dict", "other"):
                raise Damaged("it changes a tensor after making it")
        elif code not in ("PROTO", "STOP"):
            raise Damaged(f"it has an instruction {code} that no checkpoint needs")

    def _fill(self, code: str, items: list[Any]) -> None:
        kind = "list" if code.startswith("APPEND") else "dict"
        target = self.stack[-1]
        if not isinstance(target, _Thing) or target.kind != kind:
            raise Damaged("its instructions do not fit together")
        if kind == "dict" and len(items) % 2:
            raise Damaged("a name in it has no value")

    def _named(self, argument: str) -> _Name:
        module, _, name = argument.partition(" ")
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full not in self.inert and full not in _PLAIN and not _is_torchs(module, name):
            raise Unsupported(
                f"refused: this pickle wants to load {full}, which is code and not a weight",
                do="Get the model as .safetensors",
            )
        return _Name(full)

    def _stored(self, described: Any) -> _Storage:
        if not isinstance(described, _Tuple) or len(described.items) not in (5, 6):
            raise Damaged("it names a storage that is none")
        word, kind, key, _, count = described.items[:5]
        key = str(key) if isinstance(key, (str, int)) else ""
        known = isinstance(kind, _Name) and word == "storage" and type(count) is int and count >= 0
        itemsize = _storage_itemsize(kind.full) if known else None
        if itemsize is None:
            raise Damaged("it names a storage that is none")
        room = self.room(key)
        if room is None or room < count * itemsize:
            there = "none" if room is None else f"{room:,}"
            raise Damaged(f"{count * itemsize:,} bytes are wanted of storage {key!r}, has {there}")
        self.needed[key] = max(self.needed.get(key, 0), count * itemsize)
        return _Storage(count * itemsize, itemsize)

    def _called(self, function: Any, arguments: Any) -> _Thing:
        if not isinstance(function, _Name) or not isinstance(arguments, _Tuple):
            raise Damaged("its instructions do not fit together")
        name, items = function.full, arguments.items
        if name in self.inert or name == "torch.Size":
            if name == "_codecs.encode" and items[1:] not in ((), ("latin1",)):
                raise Damaged("it encodes text in a strange way")
            return _Thing("other")
        if name in _PLAIN:
            return _Thing(_PLAIN[name])
        if name == "torch._utils._rebuild_parameter":
            if items[0] != _Thing("tensor"):
                raise Damaged("a parameter in it is not made of a tensor")
            return _Thing("tensor")
        if name.startswith("torch._utils._rebuild_tensor"):
            dtype = items[6].full if name.endswith("_v3") else None
            _fits(items[0], items[1], items[2], items[3], _dtype_itemsize(dtype))
            return _Thing("tensor")
        raise Damaged(f"it calls {name}")


_CONSTANTS: dict[str, Any] = {
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
    "EMPTY_TUPLE": _Tuple((), 1),
    "EMPTY_LIST": _Thing("list"),
    "EMPTY_DICT": _Thing("dict"),
    "EMPTY_SET": _Thing("set"),
}
_LITERALS = (
    "BININT", "BININT1", "BININT2", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1",
)  # fmt: skip
_CALLED = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")


def _tuple(items: tuple[Any, ...]) -> _Tuple:
    weight = 1 + sum(item.weight if isinstance(item, _Tuple) else 1 for item in items)
    if weight > MAX_VALUES:
        raise Damaged("it unfolds into too many values")
    return _Tuple(items, weight)


def _is_torchs(module: str, name: str) -> bool:
    if module == "torch._utils":
        return name in _CALLED
    if module in ("torch", "torch.cuda", "torch.storage") and name.endswith("Storage"):
        return _storage_itemsize(f"{module}.{name}") is not None
    return module == "torch" and (
        name == "Size" or isinstance(getattr(torch, name, 0), torch.dtype)
    )


def _storage_itemsize(full: str) -> int | None:
    if full in ("torch.storage.UntypedStorage", "torch.UntypedStorage"):
        return 1
    return _STORAGES.get(full.rsplit(".", 1)[-1].removesuffix("Storage"))


def _dtype_itemsize(full: str | None) -> int | None:
    if full is None:
        return None
    dtype = getattr(torch, full.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES.values():
        raise Unsupported(
            f"a tensor in this pickle is of type {full}, which is not handled",
            do="Get the model in fp32, fp16 or bf16",
        )
    return dtype.itemsize


def _fits(storage: Any, offset: Any, size: Any, stride: Any, itemsize: int | None) -> None:
    """Raises ``Damaged`` unless a tensor lies inside its storage and repeats nothing of it."""
    sizes, strides = _whole(size), _whole(stride)
    known = isinstance(storage, _Storage) and type(offset) is int and offset >= 0
    if not known or len(sizes) != len(strides) or len(sizes) > MAX_DIMENSIONS:
        raise Damaged("a tensor in it has no valid shape")
    itemsize = itemsize or storage.itemsize
    numbers, last = 1, offset
    for n, step in zip(sizes, strides, strict=True):
        numbers *= n
        last += (n - 1) * step
    if numbers and max(numbers, last + 1) * itemsize > storage.bytes:
        raise Damaged(f"a tensor of shape {list(sizes)} has only {storage.bytes:,} bytes")


def _whole(value: Any) -> tuple[int, ...]:
    items = value.items if isinstance(value, _Tuple) else (None,)
    if not all(type(n) is int and 0 <= n < 2**63 for n in items):
        raise Damaged("a tensor in it has no valid shape")
    return items
