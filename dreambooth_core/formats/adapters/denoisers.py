"""The weights of a diffusion transformer by layer, from whichever file holds them.

A single file (the hosts' or diffusers' names, the denoiser alone or a whole checkpoint), a folder
of shards, or a folder in diffusers' layout. What hosts keep as one is cut into diffusers' layers;
slices share the file's memory. fp8 is read with its scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.disk import settle
from dreambooth_core.errors import UserError
from dreambooth_core.families.names import LayerNames
from dreambooth_core.formats import folders, storage
from dreambooth_core.formats.adapters.naming import TRANSFORMER
from dreambooth_core.formats.checkpoints.folder_layout import read_weights
from dreambooth_core.formats.transformer_files import ADVICE, family_of, quantised_by

_SCALES = (".scale_weight", ".weight_scale")
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
    _places: dict[str, _Place] = field(default_factory=dict)

    def add(self, name: str, tensor: Tensor, place: _Place) -> None:
        """One layer's tensor."""
        self.tensors[name] = tensor
        self._places[name] = place

    def with_changes(self, changed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The file's tensors with other layers; what has not changed is passed on."""
        result = dict(self.raw)
        for name, tensor in changed.items():
            place = self._places[name]
            if tensor is self.tensors[name]:
                continue
            made = _halves(tensor) if place.swapped else tensor
            if place.first is not None:
                whole = result[place.key]
                whole = whole.clone() if whole is self.raw[place.key] else whole
                whole = whole.to(torch.promote_types(whole.dtype, made.dtype))
                whole[place.first : place.first + made.shape[0]] = made
                made = whole
            result[place.key] = made
            for end in _SCALES:  # a weight in full needs no scale
                result.pop(f"{place.key.removesuffix('.weight')}{end}", None)
        return result


def is_transformer(path: Path) -> bool:
    """Whether this holds a diffusion transformer that is known by its layers; reads no weights.

    Raises:
        UserError: no such file, or a damaged one.
    """
    settle(path)
    if folders.is_folder(path):
        return (path / TRANSFORMER).is_dir()
    if path.suffix.lower() != ".safetensors":
        return False
    header = storage.read_header(path)
    shapes = {key: tuple(entry.shape) for key, entry in header.tensors.items()}
    return family_of(shapes) is not None


def read_denoiser(path: Path) -> Denoiser:
    """Reads it.

    Raises:
        UserError: damaged, or no transformer of a known family.
    """
    if folders.is_folder(path):
        raw = read_weights(path / TRANSFORMER)
    else:
        raw = storage.read_tensors(path)
    found = family_of({key: tuple(tensor.shape) for key, tensor in raw.items()})
    method = quantised_by({key: tuple(tensor.shape) for key, tensor in raw.items()})
    if method is not None:
        raise UserError(f"this model is quantised by {method}", where=path, do=f"{ADVICE}.")
    if found is None:
        raise UserError("these are the weights of no known diffusion transformer", where=path)
    names, layers = found
    made = Denoiser(names, {}, raw)
    for key, tensor in raw.items():
        base, _, kind = key.rpartition(".")
        layer = layers.get(base)
        if layer is None or kind not in _KINDS:
            continue
        value = _plain(raw, base, tensor)
        if layer.fused is None:
            value = _halves(value) if layer.swapped else value
            made.add(f"{layer.path}.{kind}", value, _Place(key, None, layer.swapped))
            continue
        first, unit = 0, value.shape[0] // sum(layer.fused.rows)
        for part, share in zip(layer.fused.parts, layer.fused.rows, strict=True):
            name = f"{part.replace('#', str(layer.block))}.{kind}"
            rows = unit * share
            made.add(name, value[first : first + rows], _Place(key, first))
            first += rows
    return made


def weights_by_module(denoiser: Denoiser) -> dict[str, Tensor]:
    """Weights by a layer's name in memory, for adapters whose change depends on the base."""
    return {
        f"{TRANSFORMER}.{key.removesuffix('.weight')}": tensor
        for key, tensor in denoiser.tensors.items()
        if key.endswith(".weight")
    }


def _plain(raw: Mapping[str, Tensor], base: str, tensor: Tensor) -> Tensor:
    if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
        return tensor
    if not tensor.is_floating_point():
        raise UserError(
            f"{base} is quantised to {str(tensor.dtype).removeprefix('torch.')}",
            do="Use the model in bf16, fp16 or fp8.",
        )
    scale = next((raw[f"{base}{end}"] for end in _SCALES if f"{base}{end}" in raw), None)
    full = tensor.to(torch.bfloat16)
    if scale is None:
        return full
    return full.float() * scale.float().reshape(scale.shape + (1,) * (full.dim() - scale.dim()))


def _halves(tensor: Tensor) -> Tensor:
    """The lower half on top."""
    return torch.cat(tensor.chunk(2)[::-1])
