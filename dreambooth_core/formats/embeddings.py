"""Files of textual inversion: what a learned token adds to the text encoders.

Both hosts read a safetensors file with ``emb_params`` [vectors, width] for one text encoder, and
with ``clip_l`` [vectors, 768] and ``clip_g`` [vectors, 1280] for two. The file's name is the word
that the hosts know it by. Files of others are also read as diffusers writes them (one tensor
under the token's name) and as the WebUI's pickles (``string_to_param``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.formats import pickles, storage

KEYS = {1: ("emb_params",), 2: ("clip_l", "clip_g")}
"""The tensors of a file, in the order of the text encoders, by how many of these there are."""

MAX_VECTORS = 1024
"""Of one token; a prompt takes 75 at a time."""


@dataclass(frozen=True)
class Embedding:
    """A learned token."""

    word: str
    """What the hosts call it: the file's name without ending."""
    rows: tuple[Tensor, ...]
    """For each text encoder its vectors, fp32 ``[vectors, width]``."""


def write_embedding(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Writes a token's vectors, always in fp32: there are few.

    Raises:
        SaveFailed: it could not be written.
    """
    storage.write_tensors(
        path, {name: t.float().contiguous() for name, t in tensors.items()}, dict(metadata)
    )
    return path


def read_embedding(path: str | Path) -> Embedding:
    """Reads an embedding file.

    Raises:
        UserError: it is damaged, or holds something else.
    """
    path = Path(path)
    found: Any = pickles.load(path) if pickles.is_pickle(path) else storage.read_tensors(path)
    if isinstance(found, Mapping) and isinstance(found.get("string_to_param"), Mapping):
        found = found["string_to_param"]
    tensors = {
        str(name): value
        for name, value in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(value, Tensor) and value.is_floating_point()
    }
    names = KEYS[2] if tensors.keys() >= set(KEYS[2]) else tuple(tensors)
    if names != KEYS[2] and len(names) != 1:
        raise UserError("this is not an embedding of a learned token", where=path)
    rows = tuple(_matrix(tensors[name], path) for name in names)
    if len({len(r) for r in rows}) != 1:
        raise UserError("its parts have different numbers of vectors", where=path)
    return Embedding(path.stem, rows)


def _matrix(value: Tensor, path: Path) -> Tensor:
    matrix = value.detach().to(torch.float32)
    if matrix.ndim == 1:
        matrix = matrix.unsqueeze(0)
    if matrix.ndim != 2 or 0 in matrix.shape or matrix.shape[0] > MAX_VECTORS:
        raise UserError(f"an embedding of shape {list(value.shape)} is damaged", where=path)
    if not bool(matrix.isfinite().all()):
        raise UserError("its vectors hold NaN or infinity", where=path)
    return matrix
