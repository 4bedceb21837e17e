"""What a safetensors file says of itself, read without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_core.disk.reading import MAX_JSON, open_regular, parse_json
from dreambooth_core.errors import UserError

EMBEDDINGS = ({"emb_params"}, {"clip_l", "clip_g"}, {"clip_l"})
"""The tensors of a learned token, for one text encoder or two."""


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata; empty for any other file."""
    found = _header(path).get("__metadata__")
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def names_of(path: Path) -> set[str]:
    """The tensors' names; none for any other file."""
    return set(_header(path)) - {"__metadata__"}


def is_embedding(path: Path) -> bool:
    """Whether a file holds a learned token."""
    return names_of(path) in EMBEDDINGS


def _header(path: Path) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            return parse_json(file.read(length)) if length <= MAX_JSON else {}
    except (OSError, ValueError, UserError):
        return {}


def version_of(path: Path) -> str:
    """``SD1``, ``SD2`` or ``SDXL``, as A1111 calls them, by its own rule."""
    told = metadata_of(path)
    if told.get("ss_base_model_version", "").startswith("sdxl_"):
        return "SDXL"
    return "SD2" if told.get("ss_v2") == "True" else "SD1"
