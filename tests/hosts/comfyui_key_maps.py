"""Asks ComfyUI's own tables what they make of adapter files, without its models.

``python comfyui_key_maps.py TASK.json`` with ComfyUI's folder as working directory. The task::

    {"models": [{"family": NAME, "class": CLASS, "config": {…}, "keys": {KEY: SHAPE},
                 "files": [PATH, …]}, …]}

It prints for every family the table from diffusers' names (``null`` where this version has none)
and for every file the keys that are not loaded. Only ``comfy.lora``, ``comfy.utils`` and
``comfy.weight_adapter`` are the host's: its models need packages that no test wants, and the
tables ask nothing of them but their class, configuration and keys.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

TABLES = {
    "flux": "flux_to_diffusers",
    "chroma": "flux_to_diffusers",
    "flux2": "flux_to_diffusers",
    "sd3": "mmdit_to_diffusers",
    "z_image": "z_image_to_diffusers",
    "krea2": "krea2_to_diffusers",
}


class _Models(ModuleType):
    """``comfy.model_base``, where every class that is asked for is an empty one."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class _Arguments:
    """A command line on which nothing is set."""

    def __getattr__(self, name: str) -> bool:
        return False


class _Missed(logging.Handler):
    """What the host says that it does not load."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        start, _, key = record.getMessage().partition("lora key not loaded: ")
        if not start and key:
            self.keys.append(key)


def main() -> None:
    """Does the task."""
    sys.path.insert(0, str(Path.cwd()))
    stand_ins: dict[str, Any] = {
        "einops": {"rearrange": None},
        "comfy.cli_args": {"args": _Arguments(), "enables_dynamic_vram": lambda: False},
        "comfy.model_management": {},
        "comfy.memory_management": {},
        "comfy_aimdo": {},
    }
    for name, values in stand_ins.items():
        module = ModuleType(name)
        vars(module).update(values)
        sys.modules[name] = module
    models = _Models("comfy.model_base")
    sys.modules["comfy.model_base"] = models

    import comfy

    for name in ("cli_args", "model_management", "memory_management", "model_base"):
        setattr(comfy, name, sys.modules[f"comfy.{name}"])

    import comfy.lora
    import comfy.utils
    import torch
    from safetensors.torch import load_file

    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    answer: dict[str, Any] = {}
    for asked in task["models"]:
        keys = {key: torch.empty(shape, device="meta") for key, shape in asked["keys"].items()}
        model = getattr(models, asked["class"])()
        model.model_config = SimpleNamespace(unet_config=asked["config"])
        model.state_dict = lambda keys=keys: keys
        table = comfy.lora.model_lora_keys_unet(model, {})
        missed = {}
        for path in asked["files"]:
            heard = _Missed()
            logging.getLogger().addHandler(heard)
            comfy.lora.load_lora(load_file(path), table)
            logging.getLogger().removeHandler(heard)
            missed[path] = heard.keys
        make = getattr(comfy.utils, TABLES.get(asked["family"], ""), None)
        theirs = None if make is None else make(asked["config"])
        answer[asked["family"]] = {"missed": missed, "table": theirs and _plain(theirs)}
    print(json.dumps(answer))


def _plain(table: dict[str, Any]) -> dict[str, Any]:
    """diffusers' key: ``[the host's key, its first row, rows, whether halves are swapped]``."""
    plain = {}
    for key, to in table.items():
        parts = (to,) if isinstance(to, str) else to
        rows = parts[1][1:] if len(parts) > 1 and parts[1] else (None, None)
        plain[key] = [parts[0], *rows, len(parts) > 2]
    return plain


if __name__ == "__main__":
    main()
