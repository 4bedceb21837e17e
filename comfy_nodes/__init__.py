"""ComfyUI's nodes. The only package that imports the host's `comfy`, `folder_paths` or `nodes`."""

from __future__ import annotations

import importlib.util
from typing import Any

from . import (
    adapters,
    bases,
    concepts,
    evaluating,
    history,
    linked,
    looking,
    marking,
    places,
    settings,
    tools,
    training,
    words,
)
from .description import Node

NODES: tuple[Node, ...] = (
    *concepts.NODES,
    *linked.NODES,
    *looking.NODES,
    *bases.NODES,
    *settings.NODES,
    *training.NODES,
    *adapters.NODES,
    *tools.NODES,
    *history.NODES,
    *marking.NODES,
    *evaluating.NODES,
)
"""Every node, described once."""
words.look_up(places.places)


def knows_v3() -> bool:
    """Whether this host has the newer schema."""
    try:
        return importlib.util.find_spec("comfy_api.latest") is not None
    except ModuleNotFoundError:
        return False


def mappings() -> tuple[dict[str, type], dict[str, str]]:
    """Classes of the older schema and their names in menus, by id."""
    from .schema_v1 import v1_class

    return {n.id: v1_class(n) for n in NODES}, {n.id: n.label for n in NODES}


async def comfy_entrypoint() -> Any:
    """What a host with the newer schema calls."""
    from .schema_v3 import extension

    return extension(NODES)
