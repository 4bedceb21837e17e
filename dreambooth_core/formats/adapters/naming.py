"""An adapter's layers under the names of its family: how files call them, and how hosts want them.

In memory a layer of a diffusion transformer is ``transformer.<diffusers' path>``; a fused one,
which diffusers does not have, ``transformer.<the hosts' path>``. A layer that no known family has
is ``other.<the name in the file>`` and is written as it was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from dreambooth_core.errors import Unsupported, at
from dreambooth_core.families.names import (
    DIFFUSERS,
    NAMES,
    Fused,
    Layer,
    LayerNames,
    names_of,
    recognise,
    variant_of,
)
from dreambooth_core.formats.adapters import fusing, tails
from dreambooth_core.formats.adapters.metadata import said_transformer
from dreambooth_core.formats.adapters.model import Adapter, Weights, component_of

Shapes = Mapping[str, Sequence[int]]
"""Shapes of tensors by key."""
TRANSFORMER, OTHER = "transformer", "other"

_PREFIXES = {
    "lora_unet__": TRANSFORMER,
    "lora_unet_": "unet",
    "lora_transformer_": TRANSFORMER,
    "lycoris_unet_": "unet",
    "oft_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
    "lycoris_te1_": "text_encoder",
    "lycoris_te2_": "text_encoder_2",
    "lycoris_te_": "text_encoder",
    "lycoris_": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "transformer.": TRANSFORMER,
    "conditional_transformer.": TRANSFORMER,
    "unet.": "unet",
    "net.": TRANSFORMER,
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_h.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "cond_stage_model.transformer.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
}
"""What stands before a layer's own name in files, and of which network it is; ``unet`` may be any
denoiser."""
_PEFT = re.compile(r"^(?:base_model\.model\.)+")
_TEXT = re.compile(r"(lora_te[0-9]?_|lycoris_te[0-9]?_|text_encoders?[._]|text_encoder_[23][._])")
_USABLE = re.compile(r"[\w.\-]{1,300}", re.ASCII)


def stripped(raw: str) -> tuple[str | None, str]:
    """``(network, if the name says it; the layer's own name)`` from a layer's name in a file."""
    raw = _PEFT.sub("", raw)
    prefix = next((prefix for prefix in _PREFIXES if raw.startswith(prefix)), "")
    return _PREFIXES.get(prefix), _PEFT.sub("", raw[len(prefix) :])


def is_text(name: str) -> bool:
    """Whether a layer, by its name in memory, is one of a text encoder."""
    component, _, path = name.partition(".")
    return component.startswith("text_encoder") or (component == OTHER and bool(_TEXT.match(path)))


Found = tuple[LayerNames, dict[str, Layer]]
"""A family, and its layers by their names in a file."""


def family_of_keys(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Found | None:
    """The family of an adapter by its keys and shapes; ``None`` if no family has any of them."""
    return layers_of(sizes_by_name(shapes), metadata or {})


def layers_of(
    sizes: Mapping[str, tuple[int | None, int | None]], metadata: Mapping[str, str]
) -> Found | None:
    """The same from sizes by the names in the file. What metadata say counts where the names
    allow it: families share names, and a small adapter shows few of them."""
    outside = {raw: stripped(raw)[1] for raw in sizes if not _TEXT.match(raw)}
    by_name = {name: sizes[raw] for raw, name in outside.items()}
    found = recognise(NAMES.working(), by_name)
    if found is None:
        return None
    said = said_transformer(metadata)
    meant = recognise((said,), by_name) if said is not None else None
    if meant is not None and len(meant[1]) == len(found[1]):
        found = meant
    names, layers = found
    # HunyuanVideo, LTX and others have some of the same names.
    if names is not said and (2 * len(layers) < len(by_name) or not names.agrees(layers, by_name)):
        return None
    return names, {raw: layers[name] for raw, name in outside.items() if name in layers}


def called(names: LayerNames, shapes: Shapes) -> str:
    """What a model is called for which a file with these keys is: its family's name, or that of
    its size."""
    sizes = {stripped(raw)[1]: size for raw, size in sizes_by_name(shapes).items()}
    layers = {name: layer for name in sizes if (layer := names.find(name)) is not None}
    variant = variant_of(names, layers, sizes)
    return (variant.label if variant else "") or names.label


def sizes_by_name(shapes: Shapes) -> dict[str, tuple[int | None, int | None]]:
    """``(outputs, inputs)`` of each layer by its name in the file, from the shapes of keys."""
    parts: dict[str, dict[str, Sequence[int]]] = {}
    for key, shape in shapes.items():
        cut = tails.split(key)
        if cut is not None:
            parts.setdefault(cut[0], {})[cut[1]] = shape

    def size(each: Mapping[str, Sequence[int]], axis: int, *tails: str) -> int | None:
        return next((each[tail][axis] for tail in tails if len(each.get(tail, ())) > 1), None)

    return {
        raw: (size(each, 0, "up", "hada_w1_a", "diff"), size(each, 1, "down", "hada_w1_b", "diff"))
        for raw, each in parts.items()
    }


def canonical(raw: str, layers: Mapping[str, Layer]) -> str | None:
    """A layer's name in memory from that in the file; ``None`` for a name that says nothing."""
    layer = layers.get(raw)
    if layer is not None:
        return f"{TRANSFORMER}.{layer.path}"
    usable = _USABLE.fullmatch(raw) and stripped(raw)[1].strip("._-")
    return f"{OTHER}.{raw}" if usable else None


def alike(adapters: Iterable[Adapter], family: str | None) -> list[Adapter]:
    """Adapters of one family with equal granularity: where one has a layer fused and another has
    its parts, the fused one is cut. Raises ``Unsupported`` where that is not exact."""
    adapters = list(adapters)
    names = names_of(family)
    if names is None:
        return adapters
    present = {name for adapter in adapters for name in adapter.modules}
    return [each.with_modules(_apart(each.modules, names, present)) for each in adapters]


def unfused(adapter: Adapter) -> Adapter:
    """The adapter with diffusers' layers alone, as a model in memory has them.

    Raises:
        Unsupported: a fused layer's change cannot be cut exactly.
    """
    names = names_of(adapter.family)
    return adapter if names is None else adapter.with_modules(_apart(adapter.modules, names))


def written(adapter: Adapter, layout: str) -> dict[str, Weights]:
    """The adapter's layers by the names of a layout, without the tails.

    ``kohya`` (hosts' names with underscores), ``comfyui`` (behind ``diffusion_model.``) or
    ``diffusers`` (behind ``transformer.``). Names of text encoders are the caller's.

    Raises:
        Unsupported: layers would have to be joined or cut, and the method does not allow it
            exactly; or two would get one name.
    """
    names = names_of(adapter.family)
    mine = {n: w for n, w in adapter.modules.items() if component_of(n) in (TRANSFORMER, OTHER)}
    native = layout == "kohya" or (
        layout == "comfyui" and names is not None and names.comfyui != DIFFUSERS
    )
    if names is not None:
        mine = _joined(mine, names) if native else _apart(mine, names)
    result: dict[str, Weights] = {}
    for name, weights in mine.items():
        component, _, path = name.partition(".")
        layer = _layer(name, names) if names is not None else None
        if names is not None and layer is not None:
            if native and layer.template in names.swapped:
                weights = fusing.swap_halves(weights)
            path = layer.path if layer.fused or not native else names.native(layer)
        key = path if component == OTHER else _prefixed(path, layout, names)
        if key in result:
            raise Unsupported(f"two layers would be written as {key!r}")
        result[key] = weights
    return result


def _prefixed(path: str, layout: str, names: LayerNames | None) -> str:
    if layout == "kohya":
        return f"lora_unet_{path.replace('.', '_')}"
    if layout == "comfyui":
        return f"diffusion_model.{path}"
    beside = names is not None and names.beside and path.startswith(names.beside)
    return path if beside else f"{TRANSFORMER}.{path}"


def _layer(name: str, names: LayerNames) -> Layer | None:
    component, _, path = name.partition(".")
    return names.find(path) if component == TRANSFORMER else None


def _part_names(layer: Layer | None) -> list[str]:
    """The names of the layers that are one in this fused one."""
    if layer is None or layer.fused is None:
        return []
    return [f"{TRANSFORMER}.{replace(layer, template=part).path}" for part in layer.fused.parts]


def _cut(name: str, weights: Weights, names: LayerNames) -> dict[str, Weights]:
    layer = _layer(name, names)
    if layer is None or layer.fused is None:
        return {name: weights}
    shares = layer.fused.rows
    with at(name):
        total = fusing.outputs_of(weights) or 0
        if total % sum(shares):
            raise Unsupported(
                f"{total} rows cannot be cut into parts of {', '.join(map(str, shares))}"
            )
        sizes = [total * share // sum(shares) for share in shares]
        parts = dict(zip(_part_names(layer), fusing.split(weights, sizes), strict=True))
    return {part: each for part, each in parts.items() if not fusing.is_zero(each)} or parts


def _apart(
    modules: Mapping[str, Weights], names: LayerNames, present: set[str] | None = None
) -> dict[str, Weights]:
    """The modules with fused ones cut: all, or those of whose parts one is ``present``."""
    result: dict[str, Weights] = {}
    for name, weights in modules.items():
        whole = present is not None and present.isdisjoint(_part_names(_layer(name, names)))
        cut = {name: weights} if whole else _cut(name, weights, names)
        for part, each in cut.items():
            if part in result:
                raise Unsupported(f"the file changes {part} twice, fused and separately")
            result[part] = each
    return result


def _joined(modules: Mapping[str, Weights], names: LayerNames) -> dict[str, Weights]:
    result: dict[str, Weights] = {}
    done: set[str] = set()
    for name, weights in modules.items():
        if name in done:
            continue
        layer = _layer(name, names)
        fused = names.fused_of(layer.template) if layer is not None else None
        if layer is None or fused is None:
            result[name] = weights
            continue
        whole = replace(layer, template=fused.native, fused=fused)
        key = f"{TRANSFORMER}.{whole.path}"
        if key in modules:
            raise Unsupported(f"the file changes {key} twice, fused and separately")
        parts = [modules.get(part) for part in _part_names(whole)]
        done.update(_part_names(whole))
        with at(key):
            result[key] = fusing.join(parts, _rows(parts, fused))
    return result


def _rows(parts: list[Weights | None], fused: Fused) -> list[int]:
    """Rows of each part: its own, or by the family's shares where it is not changed."""
    known = [None if part is None else fusing.outputs_of(part) for part in parts]
    pairs = list(zip(known, fused.rows, strict=True))
    unit = min((rows / share for rows, share in pairs if rows is not None), default=0)
    return [int(unit * share) if rows is None else rows for rows, share in pairs]
