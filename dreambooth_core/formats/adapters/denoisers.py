"""The weights of a diffusion transformer by layer, from whichever file holds them.

A single file (the hosts' or diffusers' names, the denoiser alone or a whole checkpoint), a folder
of shards, or a folder in diffusers' layout. What hosts keep as one is cut into diffusers' layers;
slices share the file's memory. fp8 is read with its scales, GGUF as bf16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.disk import settle
from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import UserError
from dreambooth_core.families.names import LayerNames
from dreambooth_core.families.names.keys import family_of
from dreambooth_core.formats import folders, gguf, storage
from dreambooth_core.formats.adapters.naming import TRANSFORMER
from dreambooth_core.formats.checkpoints.folder_layout import read_weights
from dreambooth_core.formats.checkpoints.pieces import gguf_pieces
from dreambooth_core.formats.eight_bits import MARKS, is_fp8, scale_of, scaled
from dreambooth_core.formats.quantised import ADVICE, quantised_by

_KINDS = ("weight", "bias")


@dataclass(frozen=True)
class _Place:
    """Where a layer's tensor stands in the file."""

    key: str
    first: int | None = None
    """Its first row in a fused tensor."""
    swapped: bool = False


@dataclass
class Denoiser:
    """The layers of one file."""

    names: LayerNames
    tensors: dict[str, Tensor]
    """``<diffusers' path>.weight`` and ``.bias``."""
    raw: dict[str, Tensor] = field(default_factory=dict)
    """Everything in the file, by its keys."""
    stored: str = ""
    """``GGUF`` or ``fp8``, where weights are in fewer bits than they are written in."""
    _places: dict[str, _Place] = field(default_factory=dict)

    def with_changes(
        self, changed: Mapping[str, Tensor], dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """The file's tensors with other layers; what has not changed is passed on, or stored in
        ``dtype``."""
        result = dict(self.raw)
        for name, tensor in changed.items():
            place = self._places[name]
            if tensor is self.tensors[name]:
                continue
            made = _halves(tensor) if place.swapped else tensor
            if place.first is not None:
                whole = self._whole(place.key, result[place.key])
                in_bits = is_fp8(self.raw[place.key].dtype)
                wide = torch.promote_types(whole.dtype, made.dtype)
                whole = whole.to(made.dtype if in_bits else wide)
                whole[place.first : place.first + made.shape[0]] = made
                made = whole
            result[place.key] = made
        for key, tensor in result.items():
            if dtype is not None and tensor.is_floating_point() and not MARKS.search(key):
                own = tensor is self.raw[key]
                result[key] = (self._whole(key, tensor) if own else tensor).to(dtype)
        full = {
            key.removesuffix(".weight")
            for key, before in self.raw.items()
            if key.endswith(".weight") and result[key] is not before
        }
        beside = {key: key.rpartition(".")[0] for key in result if MARKS.search(key)}
        if not any(is_fp8(each.dtype) for key, each in result.items() if key not in beside):
            full.update(beside.values())  # the mark of the whole file too
        return {key: tensor for key, tensor in result.items() if beside.get(key) not in full}

    def _whole(self, key: str, tensor: Tensor) -> Tensor:
        """A tensor that may be written into: what was read is copied, in full precision."""
        if tensor is not self.raw[key]:
            return tensor
        plain = _plain(self.raw, key.rpartition(".")[0], tensor)
        return plain.clone() if plain is tensor else plain


def is_transformer(path: Path) -> bool:
    """Whether this holds a diffusion transformer that is known by its layers; reads no weights.

    Raises:
        UserError: no such file, or a damaged one.
    """
    settle(path)
    if folders.is_folder(path):
        return (path / TRANSFORMER).is_dir()
    entries: Mapping[str, Any] = {}
    if _is_gguf(path):
        entries = gguf.read_index(path)
    elif path.suffix.lower() == ".safetensors":
        entries = storage.read_header(path).tensors
    return family_of({key: tuple(entry.shape) for key, entry in entries.items()}) is not None


def metadata_of(path: Path) -> dict[str, str]:
    """What a file says of itself; folders and GGUF files say nothing that is kept."""
    return {} if folders.is_folder(path) or _is_gguf(path) else storage.read_metadata(path)


def _is_gguf(path: Path) -> bool:
    with open_regular(path) as file:
        return file.read(len(gguf.MAGIC)) == gguf.MAGIC


def read_denoiser(path: Path) -> Denoiser:
    """Reads it.

    Raises:
        UserError: damaged, or no transformer of a known family.
    """
    stored = ""
    if folders.is_folder(path):
        raw = read_weights(path / TRANSFORMER)
    elif _is_gguf(path):
        raw, stored = gguf_pieces(path)[0].tensors(), "GGUF"
    else:
        raw = storage.read_tensors(path)
    shapes = {key: tuple(tensor.shape) for key, tensor in raw.items()}
    found, method = family_of(shapes), quantised_by(shapes)
    if method is not None:
        raise UserError(f"this model is quantised by {method}", where=path, do=f"{ADVICE}.")
    if found is None:
        raise UserError("these are the weights of no known diffusion transformer", where=path)
    names, layers = found
    if any(is_fp8(tensor.dtype) for tensor in raw.values()):
        stored = "fp8"
    made = Denoiser(names, {}, raw, stored)
    for key, tensor in raw.items():
        base, _, kind = key.rpartition(".")
        layer = layers.get(base)
        if layer is None or kind not in _KINDS:
            continue
        value = _plain(raw, base, tensor)
        if layer.fused is None:
            name = f"{layer.path}.{kind}"
            made.tensors[name] = _halves(value) if layer.swapped else value
            made._places[name] = _Place(key, None, layer.swapped)
            continue
        first, unit = 0, value.shape[0] // sum(layer.fused.rows)
        for part, share in zip(layer.fused.parts, layer.fused.rows, strict=True):
            name = f"{replace(layer, template=part).path}.{kind}"
            made.tensors[name] = value[first : first + unit * share]
            made._places[name] = _Place(key, first)
            first += unit * share
    return made


def _plain(raw: Mapping[str, Tensor], base: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        return tensor
    if not tensor.is_floating_point():
        raise UserError(
            f"{base} is quantised to {str(tensor.dtype).removeprefix('torch.')}",
            do="Use the model in bf16, fp16 or fp8.",
        )
    scale = scale_of(f"{base}.weight", raw)
    if scale is None:
        return tensor.to(torch.bfloat16)
    return scaled(tensor, raw[scale])


def _halves(tensor: Tensor) -> Tensor:
    """The lower half on top."""
    return torch.cat(tensor.chunk(2)[::-1])
