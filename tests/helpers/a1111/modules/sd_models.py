"""Checkpoints, and the model that is loaded: on a device, in RAM, or thrown away."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from modules import paths_internal, shared

checkpoints_list: dict[str, Any] = {}
loads: list[str] = []
"""Names of the models that were loaded, in order."""


class Model:
    """A model: which file, and where it is."""

    lowvram = False

    def __init__(self, info: Any) -> None:
        self.sd_checkpoint_info = info
        self.device = "gpu"


class SdModelData:
    def __init__(self) -> None:
        self.sd_model: Model | None = None
        self.loaded_sd_models: list[Model] = []
        self.was_loaded_at_least_once = False
        self.lock = threading.Lock()


model_data = SdModelData()


def list_models() -> None:
    checkpoints_list.clear()
    folder = Path(
        shared.cmd_opts.ckpt_dir or os.path.join(paths_internal.models_path, "Stable-diffusion")
    )
    for path in sorted([*folder.rglob("*.safetensors"), *folder.rglob("*.ckpt")]):
        name = path.relative_to(folder).as_posix()
        checkpoints_list[name] = SimpleNamespace(
            name=name, filename=str(path), title=name, name_for_extra=path.stem, sha256=None
        )


def select_checkpoint() -> Any:
    list_models()
    chosen = checkpoints_list.get(shared.opts.data.get("sd_model_checkpoint", ""))
    if not checkpoints_list:
        raise FileNotFoundError("No checkpoints found.")
    return chosen or next(iter(checkpoints_list.values()))


def send_model_to_cpu(model: Model) -> None:
    model.device = "cpu"


def send_model_to_device(model: Model) -> None:
    model.device = "gpu"


def send_model_to_trash(model: Model) -> None:
    model.device = "meta"


def load_model(info: Any = None) -> Model:
    info = info or select_checkpoint()
    if "broken" in info.name:
        raise RuntimeError("this file cannot be loaded")
    loads.append(info.name)
    model = Model(info)
    model_data.sd_model = model
    model_data.loaded_sd_models.insert(0, model)
    model_data.was_loaded_at_least_once = True
    return model


def reload_model_weights(sd_model: Any = None, info: Any = None) -> Model:
    """Called before each picture, and when another checkpoint is chosen."""
    info = info or select_checkpoint()
    model = model_data.sd_model
    if model is not None and model.sd_checkpoint_info.filename == info.filename:
        return model
    model_data.loaded_sd_models.clear()
    return load_model(info)
