"""Forge and Forge Neo: they load and unload models by themselves, as memory asks for it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

from .base import Gate
from .webui import WebUI, selected_checkpoint

log = logging.getLogger("dreambooth")


class Forge(WebUI):
    """Its memory manager frees the GPU on request and takes what it needs at the next image."""

    def __init__(self, version: str) -> None:
        self.name = f"Forge {version}".strip()
        self._ungated: Callable[..., Any] | None = None

    def current_checkpoint(self) -> Path | None:
        """The file that the next image is made with."""
        info = selected_checkpoint()
        return Path(info.filename).absolute() if info is not None else None

    def select_checkpoint(self, path: Path) -> None:
        """Chooses a checkpoint and loads it."""
        from modules import sd_models, shared
        from modules_forge import main_entry

        info = self.find_checkpoint(path)
        # Neo remembers a checkpoint for each of the presets that its page is switched to.
        told = {}
        if "preset" in inspect.signature(main_entry.checkpoint_change).parameters:
            told["preset"] = shared.opts.data.get("forge_preset")
        with self.alone():
            main_entry.checkpoint_change(info.title, **told)
            main_entry.refresh_model_loading_parameters()
            try:
                sd_models.forge_model_reload()
            except Exception as error:
                sd_models.model_data.forge_hash = ""  # else it takes the failed one for loaded
                log.exception("%s could not be loaded", path)
                raise UserError(
                    f"the host cannot load it: {type(error).__name__}: {error}", where=path.name
                ) from error

    def release(self, how: str) -> str:
        """Unloads everything from the GPU, and with ``unload`` forgets the model too."""
        from backend import memory_management
        from modules import sd_models

        with self.alone():
            memory_management.unload_all_models()
            data = sd_models.model_data
            if how == "unload" and data.forge_hash:
                data.sd_model = None
                data.forge_hash = ""
            memory_management.soft_empty_cache()
        return "its models were unloaded; they come back with the next image"

    def restore(self) -> None:
        """Nothing: Forge loads what it needs when it needs it."""

    def guard(self, gate: Gate | None) -> None:
        """Puts ``gate`` before ``forge_model_reload``, which comes before each image."""
        from modules import processing, sd_models

        if self._ungated is not None:
            sd_models.forge_model_reload = processing.forge_model_reload = self._ungated
            self._ungated = None
        if gate is None:
            return
        original = self._ungated = sd_models.forge_model_reload

        def gated(*args: Any, **options: Any) -> Any:
            gate()
            return original(*args, **options)

        sd_models.forge_model_reload = processing.forge_model_reload = gated
