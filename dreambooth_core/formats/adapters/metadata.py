"""What an adapter file says of itself: kohya's ``ss_*``, ``modelspec.*``, and what shapes tell."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dreambooth_core.disk.reading import parse_json
from dreambooth_core.families.names import NAMES, STABLE_DIFFUSION, LayerNames, record_of
from dreambooth_core.families.names.stable_diffusion import of_modules
from dreambooth_core.formats.adapters.model import LoraWeights, Weights

LAYERS_KEY = "dreambooth_layers_per_block"
"""Resblocks per level, written for reduced SDXL layouts only: LDM's names depend on it."""

RECIPE_KEY = "dreambooth_merge"
"""JSON: the method, and name and weight of each adapter."""


def family_of(modules: Mapping[str, Weights], metadata: Mapping[str, str]) -> str | None:
    """``sd1``, ``sd2``, ``sdxl``, or ``None``: metadata first, then what the shapes tell."""
    said = next((names for names in STABLE_DIFFUSION if names.is_named(metadata)), None)
    if said is not None:
        return said.family
    return of_modules(
        {
            n: int(w.down.shape[1]) if isinstance(w, LoraWeights) else None
            for n, w in modules.items()
        }
    )


def said_transformer(metadata: Mapping[str, str]) -> LayerNames | None:
    """The family of a diffusion transformer that metadata name, if they name one."""
    return next((names for names in NAMES.working() if names.is_named(metadata)), None)


def training_settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The training settings among the metadata, numbers as numbers, without long tables."""
    return {
        key[3:]: _plain(value)
        for key, value in sorted(metadata.items())
        if key.startswith("ss_") and value not in ("None", "") and len(value) <= 400
    }


def trigger_words(metadata: Mapping[str, str], count: int = 8) -> list[str]:
    """Trigger phrases: as written, else the captions' most frequent tags."""
    for key in ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_words", "instance_prompt"):
        if metadata.get(key):
            return [word.strip() for word in metadata[key].split(",") if word.strip()]
    totals: Counter[str] = Counter()
    for tags in _tags([metadata]).values():
        for tag, times in tags.items():
            totals[tag.strip()] += times
    return sorted(totals, key=lambda tag: (-totals[tag], tag))[:count]


def merged_metadata(
    parts: Sequence[tuple[str, float, Mapping[str, str]]], method: str
) -> dict[str, str]:
    """What all parts agree on, all trigger words, all tag counts, and the recipe.

    ``parts``: name, weight and metadata of each adapter.
    """
    sources = [said for _, _, said in parts]
    common = {k: v for k, v in sources[0].items() if all(said.get(k) == v for said in sources)}
    kept = without_network(common)
    words = dict.fromkeys(w for _, weight, said in parts if weight > 0 for w in trigger_words(said))
    if len(parts) > 1 and words:
        kept["modelspec.trigger_phrase"] = ", ".join(words)
    if tags := _tags(sources):
        kept["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    recipe = {"method": method, "adapters": [{"name": n, "weight": w} for n, w, _ in parts]}
    kept[RECIPE_KEY] = json.dumps(recipe, ensure_ascii=False)
    return kept


def _tags(sources: Sequence[Mapping[str, str]]) -> dict[str, Counter[str]]:
    """kohya's tables of tags by folder; the same folder's name in two of them is added up."""
    total: dict[str, Counter[str]] = {}
    for metadata in sources:
        try:
            folders = parse_json(metadata.get("ss_tag_frequency", "{}"))
        except ValueError:
            continue
        for folder, tags in folders.items():
            counts = tags.items() if isinstance(tags, dict) else ()
            table = total.setdefault(str(folder), Counter())
            table.update({tag: times for tag, times in counts if isinstance(times, int)})
    return total


def for_kohya(
    metadata: Mapping[str, str], modules: Mapping[str, Weights], family: str | None
) -> dict[str, str]:
    """The metadata with what the hosts look at filled in; nothing that is there is changed.

    A1111 tells SD1 from SD2 and SDXL by ``ss_v2`` and ``ss_base_model_version``.
    """
    there = {key: value for key, value in metadata.items() if key != "format"}
    simple = all(isinstance(w, LoraWeights) and w.mid is None for w in modules.values())
    said = {"ss_network_module": "networks.lora" if simple else "lycoris.kohya"}
    for key in ("rank", "alpha"):
        values = {getattr(w, key) for w in modules.values() if w.rank}
        if values:
            name = "ss_network_dim" if key == "rank" else "ss_network_alpha"
            said[name] = str(values.pop()) if len(values) == 1 else "Dynamic"
    names = record_of(family)
    if names is not None:
        said["ss_base_model_version"] = names.base_version
        said |= names.marks
        if names.architecture:
            said["modelspec.sai_model_spec"] = "1.0.0"
            said["modelspec.architecture"] = names.architecture
        if names.implementation:
            said["modelspec.implementation"] = names.implementation
    return {**there, **said, **there}


def _plain(value: str) -> Any:
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(value, value)


def without_network(metadata: Mapping[str, str]) -> dict[str, str]:
    """Metadata without ranks, alphas and hashes: they no longer hold for a changed adapter."""
    gone = (
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_module",
        "ss_network_args",
        "sshs_model_hash",
        "sshs_legacy_hash",
        "modelspec.hash_sha256",
        "lora_adapter_metadata",
    )
    return {key: value for key, value in metadata.items() if key not in gone}
