"""The example workflows with pocket in place of Stable Diffusion, and what pocket needs."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.comfy_workflows import OURS, widgets_of
from tests.hosts.comfyui_pack import CHECKPOINT, ROOT
from tools.comfyui.canvas import HOST_NODES

EXAMPLES = sorted((ROOT / "example_workflows").glob("*.json"))
RUNNABLE = [path for path in EXAMPLES if "from its files" not in path.stem]
"""Those whose models there are here, or pocket in their place."""
ONE = "a photo of a sks star with one eye and a smile"
CLASS = "a photo of a star"

DEMO = """\
data.crop=center
prior.batch_size=8
prior.num_inference_steps=20
prior.guidance_scale=3.0
objective.weighting=v_equivalent
optim.lr_scheduler=cosine
optim.lr_warmup_steps=20
validation.num_inference_steps=15
validation.guidance_scale=3.0
"""
"""What pocket learns well with."""


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    name: str
    steps: int
    size: int
    rate: float = 0.002
    class_images: int = 2
    seed: int = 1
    overrides: str = ""
    sampling_steps: int = 25


def example(name: str) -> dict[str, Any]:
    """An example as it is shipped."""
    path = ROOT / "example_workflows" / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def adapted(workflow: dict[str, Any], scale: Scale) -> dict[str, Any]:
    """The workflow for pocket and the star."""
    made = copy.deepcopy(workflow)
    for node in made["nodes"]:
        change = _CHANGES.get(node["type"])
        if change is None:
            continue
        ours = node["type"] in OURS
        names = widgets_of(OURS[node["type"]]) if ours else HOST_NODES[node["type"]][1]
        values = dict(zip(names, node["widgets_values"], strict=True))
        values |= change(values, scale)
        node["widgets_values"] = [values[name] for name in names]
    return made


def _images(values: dict[str, Any], scale: Scale) -> dict[str, Any]:
    style = "style" in values["instance_prompt"]
    prompts = ("a crt drawing", "a drawing") if style else (ONE, CLASS)
    return {
        "folder": "style" if style else "star",
        "path": "",
        "instance_prompt": prompts[0],
        "class_prompt": prompts[1],
    }


def _settings(values: dict[str, Any], scale: Scale) -> dict[str, Any]:
    full = "full" in values["preset"]
    lines = [f"data.resolution={scale.size}", scale.overrides]
    lines += [] if full else ["method.target_modules=all"]
    return {
        "preset": "(none)",
        "steps": scale.steps,
        "learning_rate": str(scale.rate / 5 if full else scale.rate),
        "random_seed": scale.seed,
        "overrides": "\n".join(lines),
    }


def _train(values: dict[str, Any], scale: Scale) -> dict[str, Any]:
    prompts = f"{ONE} on a night background\n{ONE} on a grass background"
    return {
        "checkpoint": CHECKPOINT,
        "name": f"{scale.name}{values['name']}",
        "sample_prompts": prompts,
        "sample_every": max(scale.steps // 2, 1),
    }


def _compare(values: dict[str, Any], scale: Scale) -> dict[str, Any]:
    return {
        "run": f"{scale.name}sks-star",
        "prompts": f"{ONE} on a night background\n{ONE} on a grass background\n{CLASS}",
        "width": scale.size,
        "height": scale.size,
        "cfg": 3.0,
        "sampling_steps": scale.sampling_steps,
        "scheduler": "simple",
    }


def _evaluate(values: dict[str, Any], scale: Scale) -> dict[str, Any]:
    return {
        "run": f"{scale.name}sks-star",
        "prompts": "{} on a night background\n{} on a grass background",
        "sampling_steps": scale.sampling_steps,
    }


_CHANGES: dict[str, Any] = {
    "DreamBoothImages": _images,
    "DreamBoothSettings": _settings,
    "DreamBoothTrainLora": _train,
    "DreamBoothTrainCheckpoint": _train,
    "DreamBoothTrainEmbedding": _train,
    "DreamBoothEvaluate": _evaluate,
    "DreamBoothCompareSteps": _compare,
    "DreamBoothSettingsPrior": lambda v, s: {"num_images": str(s.class_images)},
    "DreamBoothRuns": lambda v, s: {"run": f"{s.name}sks-star"},
    "DreamBoothSaveAdapter": lambda v, s: {"name": f"tests/{s.name}{v['name']}"},
    "CheckpointLoaderSimple": lambda v, s: {"ckpt_name": CHECKPOINT},
    "CLIPTextEncode": lambda v, s: {"text": f"{ONE} on a sky background"} if v["text"] else {},
    "EmptyLatentImage": lambda v, s: {"width": s.size, "height": s.size},
    "KSampler": lambda v, s: {"cfg": 3.0, "scheduler": "simple", "steps": s.sampling_steps},
}


def put_style(folder: Path) -> None:
    """Pictures of a style: the star's, as thick lines."""
    from PIL import Image, ImageFilter

    target = folder / "style"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((folder / "star").glob("*.png")):
        with Image.open(path) as opened:
            opened.convert("RGB").filter(ImageFilter.CONTOUR).save(target / path.name)
