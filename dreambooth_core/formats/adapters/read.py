"""Reads adapters of every family: kohya, diffusers (old and new) and peft, files and folders.

Every layout ends in the same :class:`Adapter`; no key of the file is dropped in silence.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dreambooth_core.disk import settle
from dreambooth_core.disk.reading import read_json, regular
from dreambooth_core.errors import Unsupported, UserError, at
from dreambooth_core.families.names import Layer, unet
from dreambooth_core.formats import pickles, storage
from dreambooth_core.formats.adapters import naming, tails
from dreambooth_core.formats.adapters.fusing import swap_halves
from dreambooth_core.formats.adapters.metadata import LAYERS_KEY, family_of
from dreambooth_core.formats.adapters.model import NETWORKS, Adapter
from dreambooth_core.formats.adapters.peft_config import PeftSettings, from_metadata

log = logging.getLogger(__name__)

_BARE_UNET = re.compile(
    r"(down_blocks|up_blocks|mid_block|conv_in|conv_out|time_embedding|"
    r"add_embedding|input_blocks|output_blocks|middle_block)[._]?"
)
_BARE_TEXT = re.compile(r"(text_model|encoder\.layers|encoder_layers|text_projection)")
_PICKLE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
MAX_TENSORS = 50_000
"""Of one adapter; SDXL has some 800 modules, and a method at most ten tensors for each."""
_DIFFUSERS_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class _Source:
    """One tensor file, and what is known of it from outside."""

    path: Path
    component: str | None = None
    settings: PeftSettings | None = None


def read_adapter(path: str | Path, *, strict: bool = True) -> Adapter:
    """Reads an adapter file, a peft folder, or a folder with one adapter per model.

    ``strict`` refuses NaN, infinity, and a file with keys that belong to no known module;
    otherwise these are listed in ``skipped`` and a warning is logged.

    Raises:
        UserError: no such file, damaged, nothing to read in it, or incomplete.
        Unsupported: an adapter of another method.
    """
    path = Path(path)
    settle(path)
    # Path.is_dir raises where a name is too long.
    sources = _folder(path) if os.path.isdir(path) else [_source(path)]
    adapter = Adapter({})
    for source in sources:
        with at(source.path):
            _add(adapter, source, strict)
    for key in adapter.skipped:
        method = tails.other_method(key)
        if method:
            raise Unsupported(f"this adapter holds {method}, which is not handled", where=path)
    if not adapter.modules:
        raise UserError("there is no adapter in this file", where=path)
    if skipped := adapter.skipped:
        text = f"{len(skipped)} keys belong to no known module, the first is {skipped[0]!r}"
        if strict:
            raise Unsupported(text, where=path)
        log.warning("%s: %s", path, text)
    adapter.family = adapter.family or family_of(adapter.modules, adapter.metadata)
    return adapter


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds peft's adapter, one in a sub folder per model, or diffusers'."""
    places = ("", *(f"{name}/" for name in NETWORKS), *(f"{name}/*/" for name in NETWORKS))
    names = (f"{place}adapter_config.json" for place in places)
    return any(next(path.glob(name), None) for name in (*names, *_DIFFUSERS_FILES))


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the text metadata of a safetensors file or of a pickled state dict.

    Copies, so that the file can be replaced; fp8 as fp16, which holds each of its numbers.

    Raises:
        UserError: damaged, or too many tensors.
    """
    if pickles.is_pickle(path):
        pickled = pickles.read_pickle(path)
        tensors, metadata = pickled.tensors, pickled.metadata
    elif path.suffix.lower() in _PICKLE_ENDINGS and regular(path):
        raise UserError("this is neither a safetensors file nor a pickle of tensors", where=path)
    else:
        tensors, metadata = storage.read_tensors(path), storage.read_metadata(path)
    if len(tensors) > MAX_TENSORS:
        raise UserError(
            f"{len(tensors):,} tensors are more than any adapter has (at most {MAX_TENSORS:,})",
            where=path,
        )
    copies = {}
    for key, tensor in tensors.items():
        small = tensor.is_floating_point() and tensor.dtype.itemsize == 1
        copies[key] = tensor.to(torch.float16 if small else tensor.dtype, copy=True).contiguous()
    return copies, metadata


def _source(path: Path, component: str | None = None) -> _Source:
    """A file, with the ``adapter_config.json`` that stands beside peft's."""
    config, folder = path.with_name("adapter_config.json"), path.parent.name
    if not path.name.startswith("adapter_model") or not config.is_file():
        return _Source(path)
    with at(config):
        settings = PeftSettings.parse(read_json(config, "not a valid peft configuration"))
    return _Source(path, component or (folder if folder in NETWORKS else None), settings)


def _folder(folder: Path) -> list[_Source]:
    """The tensor files of a folder: peft's, one per model, diffusers', or the only one there is."""
    if found := _peft(folder, None):
        return [found]
    parts = [_peft(folder / name, name) for name in NETWORKS if (folder / name).is_dir()]
    sources = [part for part in parts if part]
    if sources:
        return sources
    known = [folder / name for name in _DIFFUSERS_FILES if (folder / name).is_file()]
    files = known[:1] or sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError("there is no adapter in this folder", where=folder)
    if len(files) > 1:
        what = f"there are {len(files)} safetensors files in this folder"
        raise UserError(what, where=folder, do="Name one of them.")
    return [_source(files[0])]


def _peft(folder: Path, component: str | None) -> _Source | None:
    """peft's folder, or its only sub folder: adapters with a name of their own are saved there."""
    if not (folder / "adapter_config.json").is_file():
        inner = [p.parent for p in sorted(folder.glob("*/adapter_config.json"))]
        inner = [p for p in inner if p.name not in NETWORKS]
        if component is None or not inner:
            return None
        if len(inner) > 1:
            told = ", ".join(place.name for place in inner)
            what = f"there are {len(inner)} adapters in this folder: {told}"
            raise UserError(what, where=folder, do="Name one of them.")
        folder = inner[0]
    for name in _PEFT_FILES:
        if (folder / name).is_file():
            return _source(folder / name, component)
    raise UserError("adapter_config.json is there, but not adapter_model.safetensors", where=folder)


def _add(adapter: Adapter, source: _Source, strict: bool) -> None:
    """What one file says, its keys sorted by layer."""
    tensors, metadata = _load(source.path)
    adapter.metadata = {**metadata, **adapter.metadata}
    if source.settings and source.settings.base:
        adapter.metadata.setdefault("base_model_name_or_path", source.settings.base)
    packed = from_metadata(metadata)
    extras = {k: t for k, t in tensors.items() if k.startswith("bundle_emb.")}
    cut = {key: tails.split(key) for key in tensors if key not in extras}
    raws = dict.fromkeys(parts[0] for parts in cut.values() if parts)
    per_level = _layers(metadata, raws)
    known = {raw: module_name(raw, source.component, per_level) for raw in raws}
    layers: dict[str, Layer] = {}
    if None in known.values() and not any((n or "").startswith("unet.") for n in known.values()):
        strange = {raw for raw, name in known.items() if name is None}
        sizes = naming.sizes_by_name({key: tuple(t.shape) for key, t in tensors.items()})
        found = naming.layers_of({raw: sizes.get(raw, (None, None)) for raw in strange}, metadata)
        if found is not None:
            adapter.family = adapter.family or found[0].family
            layers = found[1]
        known |= {raw: naming.canonical(raw, layers) for raw in strange}
    groups: dict[str, dict[str, Tensor]] = {}
    for key, parts in cut.items():
        name = known[parts[0]] if parts else None
        if parts is None or name is None:
            adapter.skipped.append(key)
            continue
        module = groups.setdefault(name, {})
        if parts[1] in module:
            raise UserError(f"two keys stand for the same weight of {name}, one is {key!r}")
        module[parts[1]] = tensors[key]
    swapped = {known[raw] for raw, layer in layers.items() if layer.swapped}
    for name, group in groups.items():
        settings = source.settings or packed.get(name.split(".", 1)[0])
        made = tails.Piece(name, group, settings).assemble(strict=strict)
        adapter.modules[name] = swap_halves(made) if name in swapped else made
    for key, tensor in extras.items() if strict else ():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(f"tensor {key!r} holds NaN or infinity, or no numbers at all")
    adapter.extras.update(extras)
    if per_level != 2:
        adapter.layers_per_block = per_level


def _layers(metadata: Mapping[str, str], raw: Iterable[str]) -> int:
    said = metadata.get(LAYERS_KEY, "")
    if re.fullmatch(r"[1-9]", said):
        return int(said)
    found = map(naming.stripped, raw)
    flats = [unet.flat_name(rest) for component, rest in found if component == "unet"]
    return unet.layers_shown(flats) or unet.guess_layers_per_block(flats)


def module_name(raw: str, component: str | None = None, layers_per_block: int = 2) -> str | None:
    """The canonical name of a module under any layout's name for it; ``None`` if unknown.

    ``component`` is what the folder says, for names that do not say it themselves.
    """
    said, rest = naming.stripped(raw)
    component = said or component
    if component is None and _BARE_UNET.match(rest):
        component = "unet"
    elif component is None and _BARE_TEXT.match(rest):
        component = "text_encoder"
    if component is None or component == naming.TRANSFORMER:
        return None
    rest = rest.replace(".processor.", ".").replace("_processor_", "_")
    if component == "unet":
        path = unet.unet_path(unet.flat_name(rest), layers_per_block)
    else:
        rest = re.sub(r"\.to_(out|[qkv])$", r".\1_proj", rest)
        path = unet.text_path(unet.flat_name(rest))
    return f"{component}.{path}" if path else None
