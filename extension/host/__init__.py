"""The host, seen from the engine: the only code that imports the host's modules."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from .base import Door, Host

log = logging.getLogger("dreambooth")

__all__ = ["Door", "Host", "find"]


def find() -> Any | None:
    """The host that we are in, as both ``Host`` and ``Door``; None, and a line in its log, where
    it is none that we know."""
    try:
        from modules import script_callbacks, shared
    except ImportError as error:
        log.warning("dreambooth: this is no WebUI that is known here (%s); no tab is shown", error)
        return None
    missing = [
        what
        for what, there in (
            ("script_callbacks.on_ui_tabs", hasattr(script_callbacks, "on_ui_tabs")),
            ("shared.opts.add_option", hasattr(getattr(shared, "opts", None), "add_option")),
            ("modules.sd_models", importlib.util.find_spec("modules.sd_models") is not None),
        )
        if not there
    ]
    if missing:
        log.warning(
            "dreambooth: this WebUI lacks %s and is not supported; A1111 1.6 to 1.10 and Forge are",
            ", ".join(missing),
        )
        return None
    if importlib.util.find_spec("modules_forge") is not None:
        from .forge import Forge

        return Forge(_version())
    from .a1111 import A1111

    return A1111(_version())


def _version() -> str:
    """The host's version as it tells it itself; empty where it does not."""
    try:
        from modules import launch_utils

        return str(launch_utils.git_tag()).lstrip("v")
    except (ImportError, AttributeError):
        return ""
