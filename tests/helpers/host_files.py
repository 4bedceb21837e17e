"""Tiny bases written out as the hosts keep them: denoiser, text encoders and autoencoder alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.families.base import Family
from dreambooth_core.families.hosts import HostFiles
from dreambooth_core.formats.checkpoints import vae
from dreambooth_core.formats.checkpoints.folder_layout import read_config, read_weights
from dreambooth_core.formats.checkpoints.pairs import to_single
from dreambooth_core.formats.storage import Lazy, write_tensors

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Split:
    """The files of one base."""

    denoiser: Path
    vae: Path
    texts: list[Path]
    tokenizer: Path
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """By network, in the hosts' names."""


def write_split(
    family: Family, source: Path, folder: Path, dtype: torch.dtype | None = None
) -> Split:
    """Writes the networks of a diffusers folder as files of the hosts."""
    assert family.files is not None
    tensors = {
        family.denoiser: native(family.files, read_weights(source / family.denoiser)),
        "vae": ldm(source / "vae"),
        **{name: text(family, name, source / name) for name in family.text_encoders},
    }
    if dtype is not None:
        tensors = {
            name: {k: t.to(dtype) for k, t in each.items()} for name, each in tensors.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in tensors}
    for name, path in paths.items():
        write_tensors(path, tensors[name])
    texts = [paths[name] for name in family.text_encoders]
    return Split(paths[family.denoiser], paths["vae"], texts, source, tensors)


def native(files: HostFiles, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A denoiser's weights in the hosts' names, from diffusers'."""
    back = {new: old for old, new in files.norms.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        layer = files.names.find(stem)
        if layer is None:
            number = next((part for part in stem.split(".") if part.isdigit()), "#")
            template = stem.replace(f".{number}", ".#", 1)
            found[back_name(back, template, kind, number) if stem else name] = tensor
            continue
        fused = files.names.fused_of(layer.template)
        if fused is None:
            value = tensor
            if layer.template in files.names.swapped:
                value = torch.cat(tensor.chunk(2)[::-1])
            found[f"{files.names.native(layer)}.{kind}"] = value
        elif layer.template == fused.parts[0]:
            parts = [f"{part.replace('#', str(layer.block))}.{kind}" for part in fused.parts]
            joined = torch.cat([tensors[part] for part in parts])
            found[f"{fused.native.replace('#', str(layer.block))}.{kind}"] = joined
    return found


def back_name(back: Mapping[str, str], template: str, kind: str, number: str) -> str:
    stem = back.get(template, template).replace("#", number)
    scale = stem.endswith(("query_norm", "key_norm")) or ".norms." in stem
    return f"{stem}.{'scale' if scale else kind}"


def ldm(folder: Path) -> dict[str, Tensor]:
    """An autoencoder in LDM's names."""
    tensors = read_weights(folder)
    pairs = vae.pairs_of(vae.plan_from_config(read_config(folder)))
    made = to_single(pairs, tensors, folder)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
    return {**{k: v() if isinstance(v, Lazy) else v for k, v in made.items()}, **own}


def text(family: Family, name: str, folder: Path) -> dict[str, Tensor]:
    """A text encoder in the names that hosts' files have: a whole language model's."""
    tensors = read_weights(folder)
    kind = family.classes[name].rpartition(".")[2]
    if kind == "Qwen3Model":
        return {f"model.{key}": value for key, value in tensors.items()}
    if kind == "CLIPTextModel":
        return {
            key if key.startswith("text_model.") else f"text_model.{key}": value
            for key, value in tensors.items()
        }
    return dict(tensors)


def as_fp8(tensors: Mapping[str, Tensor], scaled: str | None = None) -> dict[str, Tensor]:
    """Matrices in 8 bits, as ComfyUI stores them: plain, or with scales of the given name."""
    found: dict[str, Tensor] = {} if scaled is None else {"scaled_fp8": torch.zeros(2).to(FP8)}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not name.endswith(".weight"):
            found[name] = tensor.to(torch.bfloat16)
        elif scaled is None:
            found[name] = tensor.to(FP8)
        else:
            scale = tensor.float().abs().max() / 448
            found[name] = (tensor.float() / scale).to(FP8)
            found[f"{name.removesuffix('.weight')}.{scaled}"] = scale.reshape(())
    return found


def edit_config(file: Path, **values: Any) -> None:
    """Changes values of a configuration."""
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **values}), encoding="utf-8")


def without(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The others."""
    left = set(names)
    return {name: tensor for name, tensor in tensors.items() if name not in left}
