"""The metadata of what was made from several adapters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from dreambooth_core.disk.reading import parse_json
from dreambooth_core.formats.adapters.metadata import trigger_words, without_network

RECIPE_KEY = "dreambooth_merge"
"""JSON: the method, and name and weight of each adapter."""


def merged_metadata(
    parts: Sequence[tuple[str, float, Mapping[str, str]]], method: str
) -> dict[str, str]:
    """What all parts agree on, all trigger words, all tag counts, and the recipe.

    ``parts``: name, weight and metadata of each adapter.
    """
    first = parts[0][2]
    kept = {k: v for k, v in first.items() if all(p[2].get(k) == v for p in parts)}
    kept = without_network(kept)
    words = list(dict.fromkeys(w for _, weight, m in parts if weight > 0 for w in trigger_words(m)))
    if len(parts) > 1 and words:
        kept["modelspec.trigger_phrase"] = ", ".join(words)
    tags = _tags([m for _, _, m in parts])
    if tags:
        kept["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    recipe = {"method": method, "adapters": [{"name": n, "weight": w} for n, w, _ in parts]}
    kept[RECIPE_KEY] = json.dumps(recipe, ensure_ascii=False)
    return kept


def _tags(sources: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """The tables of tags of all parts; the same folder name in two of them is added up."""
    total: dict[str, dict[str, int]] = {}
    for metadata in sources:
        try:
            folders = parse_json(metadata.get("ss_tag_frequency", "{}"))
        except ValueError:
            continue
        for folder, tags in folders.items():
            table = total.setdefault(str(folder), {})
            for tag, count in tags.items() if isinstance(tags, dict) else ():
                if isinstance(count, int):
                    table[tag] = table.get(tag, 0) + count
    return total
