"""The small files of a diffusers folder, and where its weights lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.disk import reading
from dreambooth_core.errors import UserError
from dreambooth_core.formats import folders, pickles, storage
from dreambooth_core.formats.privacy import cleaned

PRECISION = ("torch_dtype", "dtype")
"""Keys by which transformers, older and newer, is told the precision to load in."""

MOST_SHARDS = 1000
_SHARD = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.(safetensors|bin)")
_NUMBER = re.compile(r"-\d{1,6}-of-")
_VARIANT = re.compile(r"[A-Za-z0-9_][\w.-]{0,80}")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def stored_config(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """A network's ``config.json``.

    Of a text encoder that is stored in half precision transformers 5 would take that for what it
    is to compute in, and diffusers fp32 for the UNet beside it, which then do not fit together.
    ``torch_dtype`` makes it fp32 where nobody asks for anything else.
    """
    if name.startswith("text_encoder"):
        config = {k: v for k, v in config.items() if k not in PRECISION}
        config["torch_dtype"] = "float32"
    found: dict[str, Any] = cleaned(config)
    return found


def read_config(folder: Path) -> dict[str, Any]:
    """A network's ``config.json``, but for the precision that it is to be loaded in, which is no
    fact of the network. Raises ``UserError``."""
    config = reading.read_json(folder / "config.json")
    return {key: value for key, value in config.items() if key not in PRECISION}


def read_weights(folder: Path, variant: str | None = None) -> dict[str, torch.Tensor]:
    """A network's weights: safetensors, sharded or whole, else pickles; the variant first.

    Raises:
        UserError: there are none, or a file is damaged.
    """
    if variant and not _VARIANT.fullmatch(variant):
        raise UserError(
            f"{variant[:40]!r} is not the name of a variant", do="One is fp16, for example"
        )
    tails = [f".{variant}", ""] if variant else ["", ".fp16"]
    for ending, read in ((".safetensors", storage.read_tensors), (".bin", _read_bin)):
        for tail in tails:
            for stem in _STEMS:
                index = folder / f"{stem}{ending}.index{tail}.json"
                if folders.is_file(index):
                    return _read_shards(index)
                whole = folder / f"{stem}{tail}{ending}"
                if folders.is_file(whole):
                    return read(whole)
    raise UserError("there are no weights in this folder", where=folder)


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the shards that an index names, and nothing else.

    Raises:
        UserError: the index is damaged, a shard is missing, or they do not agree.
    """
    named = _weight_map(index)
    found: dict[str, torch.Tensor] = {}
    for name in sorted(set(named.values())):
        shard = index.with_name(name)
        held = _read_bin(shard) if shard.suffix == ".bin" else storage.read_tensors(shard)
        for tensor in held:
            if named.get(tensor) != name:
                raise UserError(
                    f"this shard holds {tensor[:80]!r}, which the list of shards does not place "
                    "here",
                    where=shard,
                )
        found |= held
    missing = next((tensor for tensor in named if tensor not in found), None)
    if missing is not None:
        raise UserError(f"the weight {missing[:80]!r} is not in its shard", where=index)
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor. Raises ``UserError``."""
    named = reading.read_json(index).get("weight_map")
    if (
        not isinstance(named, dict)
        or not named
        or not all(isinstance(name, str) for name in named.values())
    ):
        raise UserError("weight_map must name a shard for each tensor", where=index)
    shards = set(named.values())
    if len(shards) > MOST_SHARDS:
        raise UserError(f"a list of {len(shards):,} shards; no model has as many", where=index)
    strange = next((name for name in sorted(shards) if not _SHARD.fullmatch(name)), None)
    if strange is not None:
        raise UserError(f"{strange[:80]!r} is not the name of a shard", where=index)
    # Shards that belong to the same set by their names and are in no list: two models mixed.
    sets = {_NUMBER.sub("-*-of-", name) for name in shards}
    for path in folders.entries(index.parent):
        if path.name not in shards and _NUMBER.sub("-*-of-", path.name) in sets:
            raise UserError("a shard that the list of shards does not name", where=path)
    return named


def _read_bin(path: Path) -> dict[str, torch.Tensor]:
    return pickles.read_pickle(path).tensors
