"""AUTOMATIC1111's WebUI, 1.6 to 1.10."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

from . import reduced
from .base import Gate
from .webui import WebUI, selected_checkpoint

log = logging.getLogger("dreambooth")


LOADING = 180.0
"""Seconds that a host may take to load the model that it starts with."""


def _when_loaded() -> None:
    """Returns once nobody loads a model: the host's first comes in a thread of its own, which its
    queue knows nothing of. Raises ``UserError`` where that takes too long."""
    from modules import sd_models

    lock = getattr(sd_models.model_data, "lock", None)
    if lock is None:
        return
    if not lock.acquire(timeout=LOADING):
        raise UserError("the host is still loading a model", do="Try again when it is done.")
    lock.release()


class A1111(WebUI):
    """Its model is one object that is moved between devices, or thrown away and loaded again."""

    def __init__(self, version: str) -> None:
        self.name = f"AUTOMATIC1111 {version}".strip()
        self._released = ""
        self._was: Any = None
        self._gate: Gate | None = None
        self._gated: Callable[..., Any] | None = None
        self._ungated: Callable[..., Any] | None = None
        reduced.offer()

    def current_checkpoint(self) -> Path | None:
        """The file that it generates with."""
        from modules import sd_models

        if self._was is not None:
            return Path(self._was.filename).absolute()
        model = sd_models.model_data.sd_model
        info = getattr(model, "sd_checkpoint_info", None) or selected_checkpoint()
        return Path(info.filename).absolute() if info is not None else None

    def select_checkpoint(self, path: Path) -> None:
        """Loads a checkpoint in place of the present one."""
        from modules import sd_models, shared

        info = self.find_checkpoint(path)
        with self.alone():
            _when_loaded()
            if self._released:
                self._bring_back()
            try:
                sd_models.reload_model_weights(info=info)
            except Exception as error:
                log.exception("%s could not be loaded", path)
                raise UserError(
                    f"the host cannot load it: {type(error).__name__}: {error}", where=path.name
                ) from error
            shared.opts.data["sd_model_checkpoint"] = info.title
            shared.opts.data["sd_checkpoint_hash"] = info.sha256

    def release(self, how: str) -> str:
        """Takes the model off the GPU, and out of RAM too with ``unload``."""
        from modules import devices, sd_models

        with self.alone():
            _when_loaded()
            data = sd_models.model_data
            model = data.sd_model
            if self._released or model is None:
                return self._released
            self._was = model.sd_checkpoint_info
            if how == "unload":
                for loaded in {id(each): each for each in [model, *data.loaded_sd_models]}.values():
                    sd_models.send_model_to_trash(loaded)
                data.sd_model = None
                data.loaded_sd_models.clear()
                words = f"{self._was.name_for_extra} was unloaded"
            else:
                for loaded in {id(each): each for each in [model, *data.loaded_sd_models]}.values():
                    sd_models.send_model_to_cpu(loaded)
                words = f"{self._was.name_for_extra} waits in RAM"
            devices.torch_gc()
            self._released = words
            return words

    def restore(self) -> None:
        """Puts the model back on the GPU."""
        if self._released:
            with self.alone():
                self._bring_back()

    def guard(self, gate: Gate | None) -> None:
        """Puts ``gate`` before ``reload_model_weights``: the host calls that before each image
        and whenever another checkpoint is chosen."""
        from modules import sd_models

        self._gate = gate
        if gate is None:
            # Another extension may have put its own around ours: then ours stays, and is silent.
            if self._gated is not None and sd_models.reload_model_weights is self._gated:
                sd_models.reload_model_weights, self._gated = self._ungated, None
            return
        if self._gated is not None:
            return
        original = self._ungated = sd_models.reload_model_weights

        def gated(*args: Any, **options: Any) -> Any:
            if self._gate is not None:
                self._gate()
                self._bring_back()
            return original(*args, **options)

        sd_models.reload_model_weights = self._gated = gated

    def _bring_back(self) -> None:
        """Called while nobody else generates."""
        from modules import sd_models

        if not self._released:
            return
        self._released = ""
        was, self._was = self._was, None
        data = sd_models.model_data
        if data.sd_model is not None:
            sd_models.send_model_to_device(data.sd_model)
            return
        try:
            sd_models.load_model(was)
        except BaseException:
            data.was_loaded_at_least_once = False  # the host tries again when it needs it
            raise
