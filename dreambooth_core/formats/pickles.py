"""Pickled checkpoints (``.ckpt``, ``.pt``, ``.bin``), opened without running what they hold.

A pickle is a program. Torch's restricted unpickler runs none of it: it rebuilds tensors and plain
containers and refuses the rest. Early Stable Diffusion files also hold callbacks of the trainer
that made them; those become inert placeholders, which have no code to run.
"""

from __future__ import annotations

import mmap
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.pickle_check import Check, Damaged
from dreambooth_core.formats.storage import DTYPES, MAX_TENSORS

MAX_PICKLE = 64_000_000
"""Bytes of the instructions in an archive, without the numbers; real ones have under a million."""
MAX_ENTRIES = 2 * MAX_TENSORS
_LEGACY_STEPS = 3
"""Pickles before the object in a file that is no archive: magic number, version, machine."""
_DAMAGE = (
    OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
    AssertionError, OverflowError, MemoryError, NotImplementedError, zipfile.BadZipFile,
)  # fmt: skip
"""What torch and zipfile raise for files that are damaged in ways they do not look for."""


@dataclass(frozen=True)
class Pickled:
    """What a pickled checkpoint holds."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]
    global_step: int | None
    """Training steps as the trainer counted them."""


class Placeholder:
    """Stands for an object of a class that is not loaded. Keeps nothing, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


INERT = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.enums.ModelSummaryMode",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""Names in known checkpoints that a placeholder stands for."""


def is_pickle(path: str | Path) -> bool:
    """Whether a file is a torch zip archive or a bare pickle, whatever its name."""
    try:
        with open_regular(path) as file:
            head = file.read(512)
    except (UserError, OSError):
        return False
    if head[:4] == b"PK\x03\x04":
        return b".pkl" in head or _holds_pickle(path)
    # A safetensors file begins with the length of its header, which may look the same.
    if head[4:9] == b"\0\0\0\0{":
        return False
    return len(head) > 2 and head[0] == 0x80 and head[1] in (2, 3, 4, 5)


SHARED = 4
"""Tensors may share their numbers (tied weights), but not more often than this on average."""


def read_pickle(path: str | Path) -> Pickled:
    """Opens a pickled checkpoint with the restricted unpickler; zip files through a memory map.

    Raises:
        Unsupported: the file asks to run or build something that is not a tensor.
        UserError: no such file, cut short, damaged, or without tensors.
    """
    path = Path(path)
    return sorted_out(load(path), path)


def load(path: Path) -> Any:
    """The object that a pickle holds, restricted to tensors, containers and placeholders.

    Raises:
        Unsupported: the file asks for anything else.
        UserError: no such file, cut short or damaged.
    """
    allowed: list[Any] = [(Placeholder, name) for name in INERT]
    try:
        with open_regular(path) as file:
            zipped = file.read(4) == b"PK\x03\x04"
        _check_archive(path) if zipped else _check_bare(path)
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError as error:
        raise type(error)(error.what, where=path, do=error.do) from error
    except pickle.UnpicklingError as error:
        raise _damaged("this pickle is damaged or not a checkpoint", path) from error
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damaged(f"this file is damaged or cut short ({reason})", path) from error


def _damaged(what: str, path: Path) -> UserError:
    return UserError(what, where=path, do="Download or copy it again")


def _check_archive(path: Path) -> None:
    """Raises unless a zip holds what ``torch.save`` writes: one pickle and its numbers, unpacked.

    torch would inflate a compressed entry of any size, or take its bytes for numbers.
    """
    if not zipfile.is_zipfile(path):
        raise _damaged("this file is cut short (its table of contents is missing)", path)
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        sizes = {entry.filename: entry.file_size for entry in entries}
        pickled = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(entries) > MAX_ENTRIES or len(sizes) < len(entries):
            raise Damaged("its table of contents repeats itself or is too long")
        if len(pickled) != 1:
            raise Damaged("it is not an archive of PyTorch's: there is no data.pkl")
        packed = any(e.compress_type != zipfile.ZIP_STORED or e.flag_bits & 1 for e in entries)
        if packed or sum(sizes.values()) > size:
            raise Damaged("it is compressed, which PyTorch's archives are not")
        if pickled[0].file_size > MAX_PICKLE:
            raise Damaged(f"its list of tensors has {pickled[0].file_size:,} bytes")
        folder = pickled[0].filename.removesuffix("data.pkl")
        with archive.open(pickled[0]) as instructions:
            Check(lambda key: sizes.get(f"{folder}data/{key}"), INERT).run(instructions)


def _check_bare(path: Path) -> None:
    """Raises unless a file holds what ``torch.save`` wrote before it wrote archives."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if not size:
            raise _damaged("this file is empty", path)
        # Mapped, so that a text that claims to have gigabytes is cut off and not made room for.
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check = Check(lambda _: size, INERT)
            for _ in range(_LEGACY_STEPS + 2):
                check.run(cast("IO[bytes]", data))
            left = size - data.tell()
        wanted = sum(8 + numbers for numbers in check.needed.values())  # each with its length
        if wanted > left:
            raise Damaged(f"{left:,} of {wanted:,} bytes are there")


def sorted_out(loaded: Any, path: Path) -> Pickled:
    """Finds the weights in what trainers save around them."""
    step: int | None = None
    metadata: dict[str, str] = {}
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        if isinstance(loaded.get("global_step"), int):
            step = loaded["global_step"]
        if isinstance(loaded.get("metadata"), Mapping):
            metadata = {
                k: str(v)
                for k, v in loaded["metadata"].items()
                if isinstance(k, str) and isinstance(v, (str, int, float))
            }
        inner = next(
            (loaded[k] for k in ("state_dict", "module", "model") if _is_dict(loaded, k)), 0
        )
        if not inner:
            break
        loaded = inner
    tensors = dict(_tensors(loaded, path)) if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise UserError("there are no tensors in this file", where=path)
    numbers = sum(tensor.nbytes for tensor in tensors.values())
    if len(tensors) > MAX_TENSORS or numbers > SHARED * path.stat().st_size:
        raise UserError(
            f"its {len(tensors):,} tensors would take {numbers:,} bytes, many times the file's own",
            where=path,
        )
    return Pickled(tensors, metadata, step)


def _tensors(loaded: Mapping[Any, Any], path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in loaded.items():
        if not isinstance(value, torch.Tensor):
            continue
        if not isinstance(name, str):
            raise UserError(f"a tensor's name is not a text but {type(name).__name__}", where=path)
        strange = value.layout != torch.strided or value.device.type != "cpu"
        if strange or value.is_quantized or value.dtype not in DTYPES.values():
            raise Unsupported(f"tensor {name!r} is of a kind that is not handled", where=path)
        yield name, value.detach()


def _is_dict(loaded: Mapping[str, Any], key: str) -> bool:
    value = loaded.get(key)
    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values())


def _holds_pickle(path: str | Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except _DAMAGE:
        return False
