"""The files of one family as the hosts keep them: names, sizes and what no file tells.

Layers are called as :mod:`dreambooth_core.families.names` says; what is no layer (norms, tokens)
stands on the family's record. diffusers' own conversions give the same, and tests compare both;
but they know Flux.1 in one width alone, and copy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.families.names.record import Layer, LayerNames

_BLOCK = re.compile(r"(?<=\.)\d+(?=\.|$)")

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class HostFiles:
    """What is known of one family's files."""

    names: LayerNames
    keys: tuple[str, ...]
    """Weights that a denoiser of this family has, in the hosts' names."""
    config: Callable[[Tensors], dict[str, Any]]
    """The denoiser's configuration from its tensors in diffusers' names (their shapes)."""
    scheduler: Callable[[str, Mapping[str, Any]], dict[str, Any]]
    """The scheduler's configuration by the file's name and the denoiser's configuration: no file
    holds it."""
    texts: Mapping[str, str]
    """What each text encoder is called, by its folder in diffusers' layout."""
    text_widths: Mapping[str, tuple[str, int]]
    """By text encoder: the key of the denoiser's configuration that has its width (with ``.N`` the
    place in a list), times what."""
    text_tokens: Mapping[str, int] = field(default_factory=dict)
    """By text encoder: the tokens that it must be able to read, where others of its kind read
    fewer."""
    beside: Mapping[str, str] = field(default_factory=dict)
    """By companion of the denoiser: the word in the name of its file, which lies in the same
    folder."""
    without: tuple[str, ...] = ()
    """Weights that tell another model from it."""
    norms: Mapping[str, str] = field(default_factory=dict)
    """diffusers' name by the hosts', of what is no layer, with ``#`` for a block's number."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """Rows of what hosts keep in one row, by diffusers' name with ``#``."""
    turned_last: str = ""
    """diffusers' layer whose halves stand the other way round in the last block alone."""
    scales: tuple[str, ...] = ()
    """Ends of the hosts' names of norms (with ``#``) whose weight they call a scale."""
    unused: tuple[str, ...] = ()
    """Ends of the names of what hosts' files have and diffusers has not."""
    ones: Mapping[str, str] = field(default_factory=dict)
    """What hosts expect besides and use for nothing: ones, as many as this one of diffusers'."""
    latents: Mapping[str, Any] = field(default_factory=dict)
    """Of the autoencoder's configuration, what its file does not tell."""
    patch: int = 4
    """Latent channels times this are the denoiser's input channels."""
    settings: Callable[[str], dict[str, Any]] = lambda name: {}
    """What ``model_index.json`` would say besides, by the file's name."""

    def text_width(self, name: str, config: Mapping[str, Any]) -> int | None:
        """How wide a text encoder is that fits a denoiser; None where that is not told."""
        key, times = self.text_widths.get(name, ("", 1))
        if not key:
            return None
        key, _, place = key.partition(".")
        return int(config[key][int(place)] if place else config[key]) // times

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is a denoiser of this family."""
        there = set(names)
        return there.issuperset(self.keys) and there.isdisjoint(self.without)

    def latent_channels(self, config: Mapping[str, Any]) -> int:
        """Of the autoencoder that fits a denoiser."""
        return int(config["in_channels"]) // self.patch

    def read(self, tensors: Tensors) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A denoiser's configuration, and its weights in diffusers' names."""
        renamed = self.to_diffusers(tensors)
        return self.config(renamed), renamed

    def to_diffusers(self, tensors: Tensors) -> dict[str, Tensor]:
        """A denoiser's weights in diffusers' names. Only halves that are swapped are copied."""
        found: dict[str, Tensor] = {}
        last = self._last(tensors)
        for name, tensor in tensors.items():
            if name.endswith(self.unused):
                continue
            layer, kind = self._layer(name)
            if layer is None:
                stem, template, block, kind = _apart(name)
                theirs = self.norms.get(stem) or self.norms.get(template, template)
                table = self.tables.get(theirs)
                kind = ".weight" if kind == ".scale" else kind
                value = tensor.reshape(table, -1) if table else tensor
                found[f"{theirs.replace('#', block)}{kind}"] = value
            elif layer.fused is not None:
                rows = layer.fused.rows
                unit = len(tensor) // sum(rows)
                parts = torch.split(tensor, [unit * share for share in rows])
                for part, rest in zip(layer.fused.parts, parts, strict=True):
                    found[f"{part.replace('#', str(layer.block))}.{kind}"] = rest
            else:
                turned = layer.swapped or layer.path == last
                found[f"{layer.path}.{kind}"] = _turned(tensor) if turned else tensor
        return found

    def to_hosts(self, tensors: Tensors) -> dict[str, Tensor]:
        """A denoiser's weights in the hosts' names, from diffusers'; the reverse of
        :meth:`to_diffusers`. What is joined or swapped is copied."""
        back = {ours: theirs for theirs, ours in self.norms.items()}
        last = self._last(tensors)
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            layer, kind = self._layer(name)
            if layer is None:
                stem, template, block, kind = _apart(name)
                theirs = back.get(stem) or back.get(template, template)
                kind = ".scale" if kind == ".weight" and theirs.endswith(self.scales) else kind
                value = tensor.flatten() if template in self.tables else tensor
                found[f"{theirs.replace('#', block)}{kind}"] = value
                continue
            fused = self.names.fused_of(layer.template)
            if fused is None:
                turned = layer.template in self.names.swapped or layer.path == last
                value = _turned(tensor) if turned else tensor
                found[f"{self.names.native(layer)}.{kind}"] = value
            elif layer.template == fused.parts[0]:
                block = str(layer.block)
                parts = [tensors[f"{part.replace('#', block)}.{kind}"] for part in fused.parts]
                found[f"{fused.native.replace('#', block)}.{kind}"] = torch.cat(parts)
        return found | {name: torch.ones_like(tensors[like]) for name, like in self.ones.items()}

    def _layer(self, name: str) -> tuple[Layer | None, str]:
        """The layer that a weight is of, if it is of one, and which of its weights."""
        stem, _, kind = name.rpartition(".")
        return self.names.find(stem) if kind in ("weight", "bias") else None, kind

    def _last(self, tensors: Iterable[str]) -> str | None:
        """The path of the layer that is turned in the last block."""
        if not self.turned_last:
            return None
        layers = (self.names.find(name.rpartition(".")[0]) for name in tensors)
        blocks = [each.block or 0 for each in layers if each and each.template == self.turned_last]
        return self.turned_last.replace("#", str(max(blocks, default=0)))


def _turned(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _apart(name: str) -> tuple[str, str, str, str]:
    """A weight's name without its kind, the same with ``#`` for a block's number, the number and
    the kind (``.weight`` …; empty for a tensor that is no module's)."""
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias", "scale"):
        stem, kind = name, ""
    block = _BLOCK.search(stem)
    template = _BLOCK.sub("#", stem, count=1)
    return stem, template, block[0] if block else "#", f".{kind}" if kind else ""


def count(tensors: Iterable[str], prefix: str) -> int:
    """How many numbered blocks stand behind a prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in tensors if (match := pattern.match(name))})


def axes(whole: tuple[int, ...], head: int) -> list[int]:
    """Rotary axes of a head, in the shares that they have in a head of the real model."""
    return [axis * head // sum(whole) for axis in whole]


def flow_scheduler(**values: Any) -> dict[str, Any]:
    """The configuration of a scheduler of rectified flow."""
    kind = "FlowMatchEulerDiscreteScheduler"
    return {"_class_name": kind, "num_train_timesteps": 1000, **values}
