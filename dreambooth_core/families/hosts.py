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

from dreambooth_core.families.names.record import LayerNames

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
    """By text encoder: the key of the denoiser's configuration that has its width, times what."""
    without: tuple[str, ...] = ()
    """Weights that tell another model from it."""
    norms: Mapping[str, str] = field(default_factory=dict)
    """diffusers' name by the hosts', with ``#`` for a block's number, of what is no layer."""
    unused: tuple[str, ...] = ()
    """Weights that hosts' files have and diffusers has not."""
    latents: Mapping[str, Any] = field(default_factory=dict)
    """Of the autoencoder's configuration, what its file does not tell."""
    patch: int = 4
    """Latent channels times this are the denoiser's input channels."""
    settings: Callable[[str], dict[str, Any]] = lambda name: {}
    """What ``model_index.json`` would say besides, by the file's name."""

    def fits(self, names: Iterable[str]) -> bool:
        """Whether a file with these names is a denoiser of this family."""
        there = set(names)
        return there.issuperset(self.keys) and there.isdisjoint(self.without)

    def to_diffusers(self, tensors: Tensors) -> dict[str, Tensor]:
        """A denoiser's weights in diffusers' names. Only halves that are swapped are copied."""
        found: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            stem, _, kind = name.rpartition(".")
            layer = self.names.find(stem) if kind in ("weight", "bias") else None
            if name in self.unused:
                continue
            if layer is None:
                found[self._norm(name)] = tensor
            elif layer.fused is not None:
                rows = layer.fused.rows
                unit = len(tensor) // sum(rows)
                parts = torch.split(tensor, [unit * share for share in rows])
                for part, rest in zip(layer.fused.parts, parts, strict=True):
                    found[f"{part.replace('#', str(layer.block))}.{kind}"] = rest
            else:
                value = torch.cat(tensor.chunk(2)[::-1]) if layer.swapped else tensor
                found[f"{layer.path}.{kind}"] = value
        return found

    def _norm(self, name: str) -> str:
        stem, _, kind = name.rpartition(".")
        block = _BLOCK.search(stem)
        template = stem if block is None else f"{stem[: block.start()]}#{stem[block.end() :]}"
        stem = self.norms.get(template, template).replace("#", block[0] if block else "#")
        kind = "weight" if kind == "scale" else kind
        return f"{stem}.{kind}" if stem else name


def count(tensors: Iterable[str], prefix: str) -> int:
    """How many numbered blocks stand behind a prefix."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    return len({match[1] for name in tensors if (match := pattern.match(name))})


def axes(whole: tuple[int, ...], head: int) -> list[int]:
    """Rotary axes of a head, in the shares that they have in a head of the real model."""
    return [axis * head // sum(whole) for axis in whole]


def flow_scheduler(**values: Any) -> dict[str, Any]:
    """The configuration of a scheduler of rectified flow."""
    return {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        **values,
    }
