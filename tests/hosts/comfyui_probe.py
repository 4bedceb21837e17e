"""Runs inside ComfyUI's own Python: what its loaders make of files, written down as tensors.

``python comfyui_probe.py TASK.json`` with ComfyUI's folder as working directory. The task::

    {"checkpoint": PATH, "out": FOLDER, "adapters": [[NAME, PATH, STRENGTH], …]}

or ``{"shapes": {KEY: SHAPE}, "out": FOLDER}`` for a UNet too large to load, of which only the
host's detection is asked. ``out`` gets ``report.json``, and ``base.safetensors`` and
``<NAME>.safetensors``: the weights in effect, under the names of a checkpoint.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path.cwd()))

import comfy.cli_args  # type: ignore[import-not-found]

comfy.cli_args.args.cpu = True
comfy.cli_args.args.fp32_text_enc = True

import comfy.model_detection  # type: ignore[import-not-found]  # noqa: E402
import comfy.sd  # type: ignore[import-not-found]  # noqa: E402
import comfy.utils  # type: ignore[import-not-found]  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."


def main() -> None:
    """Does the task."""
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(task["out"])
    if "shapes" in task:
        (out / "report.json").write_text(json.dumps(detect(task["shapes"])), encoding="utf-8")
        return
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(task["checkpoint"])
    base = weights(model, clip)
    save(base, out / "base.safetensors")
    report: dict[str, Any] = {
        "kind": type(model.model.model_config).__name__,
        "prediction": model.model.model_type.name,
        "vae": type(vae.first_stage_model).__name__,
        "patched": {},
    }
    for name, path, strength in task["adapters"]:
        state = comfy.utils.load_torch_file(path)
        patched, words = comfy.sd.load_lora_for_models(model, clip, state, strength, strength)
        found = weights(patched, words)
        save(found, out / f"{name}.safetensors")
        report["patched"][name] = len(patched.patches) + len(words.patcher.patches)
    (out / "report.json").write_text(json.dumps(report), encoding="utf-8")


def detect(shapes: dict[str, list[int]]) -> dict[str, str]:
    """What the host takes a UNet for."""
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = comfy.model_detection.model_config_from_unet(state, UNET)
    prediction = config.model_type({k.removeprefix(UNET): v for k, v in state.items()}, UNET)
    return {"kind": type(config).__name__, "prediction": prediction.name}


def weights(model: Any, clip: Any) -> dict[str, Any]:
    """The weights in effect, of UNet and text encoder."""
    model.patch_model(device_to=None)
    clip.patcher.patch_model(device_to=None)
    found = {UNET + key: value.clone() for key, value in state_of(model.model.diffusion_model)}
    text = clip.cond_stage_model.clip_l.transformer
    found |= {TEXT + key: value.clone() for key, value in state_of(text)}
    model.unpatch_model()
    clip.patcher.unpatch_model()
    return found


def state_of(module: Any) -> Any:
    return module.state_dict().items()


def save(tensors: dict[str, Any], path: Path) -> None:
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


main()
