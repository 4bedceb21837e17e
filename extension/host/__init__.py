"""The host, seen from the engine: the only code that imports the host's modules."""

from __future__ import annotations

import html
import importlib.util
import sys
from typing import Any

from .base import Door, Host

__all__ = ["Door", "Host", "UnknownHost", "find", "show"]

KNOWN = "A1111 1.6 to 1.10, reForge, Forge and Forge Neo are known"


class UnknownHost(Exception):
    """This is no host that we know; what it lacks."""


def find() -> Any:
    """The host that we are in, as both ``Host`` and ``Door``; chosen by what it offers, since
    forks have names and versions of their own.

    Raises:
        UnknownHost: something is not there that we need.
    """
    try:
        from modules import script_callbacks, sd_models, shared
    except ImportError as error:
        raise UnknownHost(f"this WebUI is not known here ({error})") from error
    lacks = [
        f"{module.__name__.removeprefix('modules.')}.{name}"
        for module, names in (
            (script_callbacks, ("on_ui_tabs", "on_app_started", "on_ui_settings")),
            (sd_models, ("list_models", "checkpoints_list", "select_checkpoint", "model_data")),
        )
        for name in names
        if not hasattr(module, name)
    ]
    if not hasattr(getattr(shared, "opts", None), "add_option"):
        lacks.append("shared.opts.add_option")
    if lacks:
        raise UnknownHost(f"this WebUI lacks {', '.join(lacks)}; {KNOWN}")
    if hasattr(sd_models, "forge_model_reload"):
        parts = ("modules_forge.main_entry", "backend.memory_management")
        lacks = [name for name in parts if not _is_there(name)]
        if lacks:
            raise UnknownHost(f"this Forge lacks {', '.join(lacks)}; {KNOWN}")
        from .forge import Forge

        return Forge(_version())
    moves = ("reload_model_weights", "load_model", "send_model_to_cpu", "send_model_to_device")
    lacks = [f"sd_models.{name}" for name in moves if not hasattr(sd_models, name)]
    if lacks:
        raise UnknownHost(f"this WebUI lacks {', '.join(lacks)}; {KNOWN}")
    from .a1111 import A1111

    return A1111(_version())


def show(reason: str) -> None:
    """A tab that says why there is nothing else in it, where the host has tabs."""
    try:
        import gradio
        from modules import script_callbacks
    except ImportError:
        return

    def page() -> list[tuple[Any, str, str]]:
        with gradio.Blocks(analytics_enabled=False) as blocks:
            gradio.HTML(f"<p>{html.escape(reason)}</p>")
        return [(blocks, "DreamBooth", "dreambooth")]

    if hasattr(script_callbacks, "on_ui_tabs"):
        script_callbacks.on_ui_tabs(page)


def _is_there(module: str) -> bool:
    try:
        return module in sys.modules or importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _version() -> str:
    """The host's version as it tells it itself; empty where it does not."""
    try:
        from modules import launch_utils

        return str(launch_utils.git_tag()).lstrip("v")
    except (ImportError, AttributeError):
        return ""
