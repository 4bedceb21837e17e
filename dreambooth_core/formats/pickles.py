"""Pickled checkpoints (``.ckpt``, ``.pt``, ``.bin``), opened without running what they hold.

A pickle is a program. Torch's restricted unpickler runs none of it: it rebuilds tensors and plain
containers and refuses the rest. Early Stable Diffusion files also hold callbacks of the trainer
that made them; those become inert placeholders, which have no code to run.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import Unsupported, UserError


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
        with Path(path).open("rb") as file:
            head = file.read(512)
    except OSError:
        return False
    if head[:4] == b"PK\x03\x04":
        return b".pkl" in head or _holds_pickle(path)
    # A safetensors file begins with the length of its header, which may look the same.
    if head[4:9] == b"\0\0\0\0{":
        return False
    return len(head) > 2 and head[0] == 0x80 and head[1] in (2, 3, 4, 5)


def read_pickle(path: str | Path) -> Pickled:
    """Opens a pickled checkpoint with the restricted unpickler; zip files through a memory map.

    Raises:
        Unsupported: the file asks to run or build something that is not a tensor.
        UserError: no such file, cut short, damaged, or without tensors.
    """
    path = Path(path)
    return _sorted(load(path), path)


def load(path: Path) -> Any:
    """The object that a pickle holds, restricted to tensors, containers and placeholders.

    Raises:
        Unsupported: the file asks for anything else.
        UserError: no such file, cut short or damaged.
    """
    allowed: list[Any] = [(Placeholder, name) for name in INERT]
    try:
        zipped = zipfile.is_zipfile(path)
        with path.open("rb") as file:
            head = file.read(4)
        if not zipped and head == b"PK\x03\x04":
            raise UserError(
                "this file is cut short (its table of contents is missing)",
                where=path,
                do="Download or copy it again",
            )
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"this file is damaged or cut short ({reason})",
            where=path,
            do="Download or copy it again",
        ) from error


def _refused(path: Path, error: Exception) -> UserError:
    text = str(error)
    found = re.search(r"GLOBAL `?(\w+\.[\w.]+)", text)
    if found is None:
        return UserError(
            "this pickle is damaged or not a checkpoint",
            where=path,
            do="Download or copy it again",
        )
    return Unsupported(
        f"refused: this pickle wants to load {found.group(1)}, which is code and not a weight",
        where=path,
        do="Get the model as .safetensors",
    )


def _sorted(loaded: Any, path: Path) -> Pickled:
    """Finds the weights in what trainers save around them."""
    step: int | None = None
    metadata: dict[str, str] = {}
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        if isinstance(loaded.get("global_step"), int):
            step = loaded["global_step"]
        if isinstance(loaded.get("metadata"), Mapping):
            metadata = {str(k): str(v) for k, v in loaded["metadata"].items()}
        inner = next(
            (loaded[k] for k in ("state_dict", "module", "model") if _is_dict(loaded, k)), 0
        )
        if not inner:
            break
        loaded = inner
    tensors = dict(_tensors(loaded)) if isinstance(loaded, Mapping) else {}
    if not tensors:
        raise UserError("there are no tensors in this file", where=path)
    return Pickled(tensors, metadata, step)


def _tensors(loaded: Mapping[Any, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in loaded.items():
        if isinstance(value, torch.Tensor):
            yield str(name), value.detach()


def _is_dict(loaded: Mapping[str, Any], key: str) -> bool:
    value = loaded.get(key)
    return isinstance(value, Mapping) and any(isinstance(v, torch.Tensor) for v in value.values())


def _holds_pickle(path: str | Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
