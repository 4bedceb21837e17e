"""Writes adapters: in the names that hosts load, diffusers' or peft's.

Of Stable Diffusion 1, 2 and XL every host loads kohya's names. Of other families each host has
its own table, so the ``host`` layout is the one that most of them load (``families.names``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.bases.locate import hub_id
from dreambooth_core.disk import replacing_folder, write_json
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.names import FamilyNames, UNetNames, names_of, record_of, unet
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.metadata import LAYERS_KEY, family_of, for_kohya
from dreambooth_core.formats.adapters.model import (
    NETWORKS,
    Adapter,
    LoraWeights,
    OftWeights,
    Weights,
    component_of,
)
from dreambooth_core.formats.adapters.naming import OTHER, TRANSFORMER, written
from dreambooth_core.formats.adapters.peft_config import METADATA_KEY, to_config
from dreambooth_core.formats.layouts import LAYOUTS
from dreambooth_core.formats.privacy import cleaned

log = logging.getLogger(__name__)

_DOTTED = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
_PEFT_TAILS = {**_DOTTED, "dora_scale": "lora_magnitude_vector"}


def write_adapter(
    adapter: Adapter, path: str | Path, layout: str = "kohya", *, dtype: torch.dtype | None = None
) -> Path:
    """Writes an adapter and returns what was written: a file, or for peft a folder.

    ``dtype``: the floating-point type to store; by default each tensor keeps its own.

    Raises:
        UserError: an unknown layout, nothing to write, or numbers that overflow.
        Unsupported: the layout cannot hold the adapter's method.
        SaveFailed: the file could not be written.
    """
    path = Path(path)
    if layout not in LAYOUTS:
        raise UserError(f"there is no layout {layout!r}", do=f"Choose from {', '.join(LAYOUTS)}.")
    if not adapter.modules:
        raise UserError("the adapter is empty, there is nothing to write", where=path)
    if dtype is not None:
        adapter = adapter.to(dtype)
    for name, weights in adapter.modules.items():  # before anything is replaced
        try:
            weights.check_numbers()
        except UserError as error:
            what = f"not saved: {error.what}, in {name}"
            raise UserError(what, where=path, do=error.do) from error
    asked = layout
    if layout == "host":
        layout = host_layout(adapter)
        try:
            written(adapter, layout)
        except Unsupported as error:
            # What took hours to train is not lost because of a name: diffusers' need no joining.
            log.warning("diffusers' names are written: %s", error.line)
            layout = "diffusers"
    try:
        if layout == "peft":
            return _write_peft(adapter, path)
        # DoRA has other tensors for hosts than for diffusers: no host reads peft's name of the
        # magnitudes.
        plain = all(weights.is_plain for weights in adapter.modules.values())
        if layout == "diffusers" and (asked != "host" or plain):
            storage.write_tensors(path, *_for_diffusers(adapter))
        else:
            tensors = host_tensors(adapter, layout)
            storage.write_tensors(path, tensors, kohya_metadata(adapter))
    except Unsupported as error:
        where = f"{path}, {error.where}" if error.where else path
        raise Unsupported(error.what, where=where, do=error.do) from error
    return path


def host_layout(adapter: Adapter) -> str:
    """The layout that most hosts load an adapter of this family in."""
    names_here = names_of(adapter.family)
    if names_here is not None:
        return names_here.written
    return "comfyui" if OTHER in adapter.components else "kohya"


def host_tensors(adapter: Adapter, layout: str) -> dict[str, Tensor]:
    """The adapter under kohya's keys, or with dots behind ``diffusion_model.`` (``comfyui``) or
    ``transformer.`` (``diffusers``), with the tensors that hosts read.

    Raises:
        Unsupported: an OFT that turns inputs, which these layouts cannot say; or layers that
            would have to be cut or joined and cannot be.
    """
    family = adapter.family or family_of(adapter.modules, adapter.metadata)
    record = record_of(family)
    usual = record.attention_levels if isinstance(record, UNetNames) else unet.USUAL_LEVELS
    levels = unet.attention_levels((path for path, _ in adapter.of("unet")), usual)
    named = {
        kohya_name(name, record, adapter.layers_per_block, levels): weights
        for name, weights in _stable(adapter).items()
    }
    named |= written(adapter, layout)
    tensors: dict[str, Tensor] = {}
    for module, weights in named.items():
        if isinstance(weights, OftWeights) and weights.side == "in":
            raise Unsupported(
                "peft's OFT turns inputs, and the hosts' OFT turns outputs",
                do="Write the peft layout, or make it a LoRA: dreambooth resize with --base.",
            )
        dotted = "." in module and isinstance(weights, LoraWeights) and weights.mid is None
        for tail, tensor in (folded(weights) if dotted else weights).tensors().items():
            if dotted and tail == "alpha":
                continue
            key = f"{module}.{_DOTTED.get(tail, tail) if dotted else tail}"
            if key in tensors:
                raise UserError(f"two modules would be written as {key!r}")
            tensors[key] = tensor
    return {**tensors, **adapter.extras}


def folded(weights: Weights) -> Weights:
    """A LoRA whose scale is inside its up matrix (alpha = rank): under dotted names some programs
    look for alpha in the metadata, some in the tensors and some nowhere."""
    if not isinstance(weights, LoraWeights) or weights.alpha == weights.rank:
        return weights
    up = (weights.up.float() * (weights.alpha / weights.rank)).to(weights.up.dtype)
    return replace(weights, up=up, alpha=float(weights.rank))


def kohya_name(
    name: str, record: FamilyNames | None, layers_per_block: int, levels: Set[int]
) -> str:
    """A module's name in kohya's layout, the one that both hosts know for its family."""
    component, path = name.split(".", 1)
    if component == "unet":
        flat = None
        if isinstance(record, UNetNames) and record.is_numbered:
            flat = unet.ldm_name(path, layers_per_block, levels)
        return f"lora_unet_{flat or unet.flat_name(path)}"
    first = record.text_prefix if record is not None else "lora_te"
    prefix = {"text_encoder": first, "text_encoder_2": "lora_te2"}[component]
    return f"{prefix}_{unet.flat_name(path)}"


def kohya_metadata(adapter: Adapter) -> dict[str, str]:
    """The metadata for kohya's layout: all that is there, and what the hosts look at."""
    family = adapter.family or family_of(adapter.modules, adapter.metadata)
    return for_kohya(_kept(adapter), adapter.modules, family) | _layers(adapter)


def _for_diffusers(adapter: Adapter) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under the names that ``load_lora_weights`` takes, LoRA and DoRA only; and all
    metadata, with ranks and alphas as diffusers 0.34 and newer read them.

    Layers of a transformer have their scale inside, because hosts read this layout too and do not
    read diffusers' metadata.
    """
    outside = {name: folded(weights) for name, weights in written(adapter, "diffusers").items()}
    renamed = adapter.with_modules(_stable(adapter) | outside)
    tensors: dict[str, Tensor] = {}
    for name, weights in renamed.modules.items():
        lora = isinstance(weights, LoraWeights) and weights.mid is None and weights.bias is None
        if not lora:
            raise Unsupported(
                f"diffusers' layout holds LoRA and DoRA, and {name} is {weights.method}",
                do="Write the kohya layout.",
            )
        tensors.update(peft_tensors(name, weights))
    packed: dict[str, Any] = {}
    for component in (c for c in NETWORKS if c in renamed.components):
        config = to_config(dict(renamed.of(component)))
        config.pop("base_model_name_or_path")
        packed.update({f"{component}.{key}": value for key, value in config.items()})
    kept = {**_kept(adapter), "format": "pt", **_layers(adapter)}
    if adapter.family and adapter.family != family_of(adapter.modules, kept):
        kept = for_kohya(kept, adapter.modules, adapter.family)
    metadata = {**kept, METADATA_KEY: json.dumps(packed, sort_keys=True)}
    return {**tensors, **adapter.extras}, metadata


def _stable(adapter: Adapter) -> dict[str, Weights]:
    """The modules of UNets and text encoders."""
    outside = (TRANSFORMER, OTHER)
    return {n: w for n, w in adapter.modules.items() if component_of(n) not in outside}


def peft_tensors(name: str, weights: Weights) -> dict[str, Tensor]:
    """One module under peft's tails, without alpha: peft keeps that in its configuration."""
    if isinstance(weights, OftWeights):
        size = weights.rank
        rows, columns = torch.triu_indices(size, size, 1)
        blocks = weights.blocks - weights.blocks.transpose(-1, -2)
        vectors = blocks[:, rows, columns]
        return {f"{name}.oft_R.weight": vectors if weights.terms else -vectors}
    tensors: dict[str, Tensor] = {}
    for tail, tensor in weights.tensors().items():
        if tail == "alpha":
            continue
        if tail == "dora_scale":
            tensor = _magnitude(name, weights, tensor)
        tensors[f"{name}.{_PEFT_TAILS.get(tail, tail)}"] = tensor
    return tensors


def _magnitude(name: str, weights: Weights, scale: Tensor) -> Tensor:
    """DoRA's magnitudes in peft's shape: [out], for convolutions [1, out, 1, 1]."""
    if not isinstance(weights, LoraWeights):
        raise Unsupported("peft has no DoRA of LoHa or LoKr", do="Write the kohya layout.")
    if scale.shape[0] != weights.up.shape[0]:
        raise Unsupported(
            f"{name} keeps a magnitude per input, and peft's DoRA has one per output",
            do="Write the kohya layout.",
        )
    flat = scale.reshape(-1)
    return flat if weights.down.ndim == 2 else flat.reshape(1, -1, *[1] * (weights.down.ndim - 2))


def _write_peft(adapter: Adapter, folder: Path) -> Path:
    """``adapter_config.json`` and ``adapter_model.safetensors`` in a sub folder per model:
    ``unet``, ``text_encoder``, ``text_encoder_2``, as peft's example script does."""
    base = hub_id(adapter.metadata.get("base_model_name_or_path", "")) or ""
    parts: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {}
    if OTHER in adapter.components:
        raise Unsupported(
            "peft's layout says which network each layer is in, and of this family no more is "
            "known than the file's own names",
            do="Write the host layout, which keeps them.",
        )
    renamed = adapter.with_modules(_stable(adapter) | written(adapter, "diffusers"))
    layers = names_of(adapter.family)
    beside = layers.beside if layers is not None else ""
    if beside and any(name.startswith(beside) for name in renamed.modules):
        raise Unsupported(
            "peft's layout has no place for the text conditioner", do="Write the host layout."
        )
    for component in renamed.components:
        named = dict(renamed.of(component))
        tensors: dict[str, Tensor] = {}
        for path, weights in named.items():
            if component == "text_encoder":
                # transformers 5.6 flattened CLIPTextModel, so its paths have no text_model; that of
                # CLIPTextModelWithProjection (SDXL's second encoder) has stayed.
                path = path.removeprefix("text_model.")
            tensors.update(peft_tensors(f"base_model.model.{path}", weights))
        parts[component] = to_config(named, base), tensors
    kept = kohya_metadata(adapter)
    with replacing_folder(folder, NETWORKS) as made:
        for component, (config, tensors) in parts.items():
            place = made / component
            storage.write_tensors(
                place / "adapter_model.safetensors", tensors, {**kept, "format": "pt"}
            )
            write_json(place / "adapter_config.json", cleaned(config))
    return folder


def _kept(adapter: Adapter) -> dict[str, str]:
    """Metadata without what describes another layout: it would contradict the file."""
    return {k: v for k, v in adapter.metadata.items() if k not in (METADATA_KEY, "format")}


def _layers(adapter: Adapter) -> dict[str, str]:
    layers = adapter.layers_per_block
    return {} if layers == 2 else {LAYERS_KEY: str(layers)}
