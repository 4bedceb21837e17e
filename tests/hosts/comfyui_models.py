"""Asks ComfyUI's own detection what it makes of denoisers' files, without any weight.

``python comfyui_models.py TASK.json`` with ComfyUI's folder as working directory. The task is
``{NAME: {KEY: SHAPE}}``, the names and sizes in files; it prints for every name the class of the
model, and the keys that the model has and the file lacks and the other way round. All of it is on
the meta device.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def asked(shapes: dict[str, list[int]]) -> dict[str, Any]:
    """What the host says of one file."""
    import torch
    from comfy import model_detection

    tensors = {k: torch.empty(shape, device="meta") for k, shape in shapes.items()}
    config = model_detection.model_config_from_unet(tensors, "")
    if config is None:
        return {"class": None}
    with torch.device("meta"):
        model = config.get_model(tensors, "", device="meta")
    own = model.diffusion_model.state_dict()
    given = config.process_unet_state_dict(dict(tensors))
    wrong = [k for k in own.keys() & given.keys() if own[k].shape != given[k].shape]
    return {
        "class": type(config).__name__,
        "missing": sorted(own.keys() - given.keys()),
        "left": sorted(given.keys() - own.keys()),
        "wrong": sorted(wrong),
    }


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.argv = [*sys.argv[:1], "--cpu"]
    sys.path.insert(0, str(Path.cwd()))
    import comfy.options

    comfy.options.enable_args_parsing()
    print(json.dumps({name: asked(shapes) for name, shapes in task.items()}))


if __name__ == "__main__":
    main()
