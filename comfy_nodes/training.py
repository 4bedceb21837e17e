"""Train LoRA and Train Checkpoint: a run of the engine inside a graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.bases.embedded import EMBEDDED
from dreambooth_core.disk import copy_file
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt, sanitise
from dreambooth_core.methods.table import METHODS

from . import engine, host
from .adapters import ADAPTER_OUTPUT, Adapter
from .bases import BASE_INPUT, SplitBase
from .concepts import Concept
from .description import CONCEPT, PREFIX, SETTINGS, TOLD, Input, Node, Output, Result
from .requests import Draft, Found, Request, find, prepare
from .settings import Settings
from .watching import samples_of, train, watch

if TYPE_CHECKING:
    from torch import Tensor

FULL = "full"
OTHERS = {name for name, spec in METHODS.ours().items() if spec.learns_token or not spec.is_adapter}
KINDS = tuple(name for name in METHODS if name not in OTHERS)
"""Adapters, also those that other packages bring."""


def train_adapter(
    checkpoint: str,
    concept: Sequence[Concept],
    name: str,
    method: str,
    sample_prompts: str,
    sample_every: int,
    rank: int = 0,
    settings: Settings | None = None,
    base: SplitBase | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Train LoRA."""
    values = {"method.kind": method, "save.at_end": True}
    values |= {"method.rank": rank} if rank else {}
    values |= _samples(concept, sample_prompts, sample_every)
    request = Draft(name, base or checkpoint, concept, settings, values).request()
    folder, step, lines = fulfil(request, host.Progress(node_id))
    file = _result(folder, step)
    if base is not None or checkpoint in EMBEDDED:
        model, clip, vae = _left_out()
        lines = [*lines, _small(checkpoint) if base is None else SPLIT]
    else:
        model, clip, vae = _models(checkpoint, folder, file)
    adapter = Adapter(file, folder.name, step)
    return Result((model, clip, vae, adapter, *_pictures(folder, step)), lines)


def train_checkpoint(
    checkpoint: str,
    concept: Sequence[Concept],
    name: str,
    sample_prompts: str,
    sample_every: int,
    resumable: bool,
    settings: Settings | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Train Checkpoint."""
    for preset in settings.presets if settings else ():
        if "-lora-" in preset:
            raise UserError(
                f"the preset {preset} is for adapters",
                do=f"Choose {preset.replace('-lora-', '-full-')} in Settings.",
            )
    values = {"method.kind": FULL, "save.at_end": resumable}
    values |= _samples(concept, sample_prompts, sample_every)
    request = Draft(name, checkpoint, concept, settings, values).request()
    folder, step, lines = fulfil(request, host.Progress(node_id))
    listed = publish(_result(folder, step))
    lines = [*lines, f"saved as {listed}"]
    if checkpoint in EMBEDDED:
        models = _left_out()
        lines.append(_small(checkpoint))
    else:
        models = _as_trained(folder, host.load_checkpoint(listed))
    return Result((*models, listed.name, *_pictures(folder, step)), lines)


def fulfil(request: Request, progress: host.Progress) -> tuple[RunFolder, int | None, list[str]]:
    """Does what is still to be done of a request.

    Returns:
        The run, the step of the result that was asked for (None: its last), and what was done.
    """
    engine.require()
    done = "trained"
    while True:
        found = find(request)
        if found is not None and found.action == "use":
            if done == "trained":
                done = "trained before with the same inputs"
            return found.folder, found.step, [_told(request, found.folder, done), *found.notes]
        if found is not None and found.action == "watch":
            watch(found.folder, progress)
            continue
        done = _train(request, found, progress)


def _told(request: Request, folder: RunFolder, done: str) -> str:
    """What became of a request; a run that was found keeps the name that it was trained under."""
    line = f"{folder.name}: {done}"
    asked = sanitise(request.name)
    if folder.name == asked or folder.name.startswith(f"{asked}-"):
        return line
    return f"{line}; it keeps its name, and {asked} is not made again"


def _train(request: Request, found: Found | None, progress: host.Progress) -> str:
    folder, proposal = prepare(request, found)
    host.free_models()
    train(folder, progress, proposal)
    return "trained now" if found is None else f"resumed from step {found.step or 0}"


def _samples(concepts: Sequence[Concept], prompts: str, every: int) -> dict[str, Any]:
    """Sample images: the prompts given, else the instance prompts."""
    given = [line.strip() for line in prompts.splitlines() if line.strip()]
    named = [str(concept.options["instance_prompt"]) for concept in concepts]
    return {
        "validation.prompts": given or list(dict.fromkeys(named)),
        "validation.every_steps": every or None,
    }


def _result(folder: RunFolder, step: int | None) -> Path:
    """The file that a run made, of its end or of a step."""
    if step is not None:
        return folder.path / f"{folder.name}-{step:06d}.safetensors"
    name = read_receipt(folder).get("result", {}).get("file")
    path = folder.path / str(name)
    if not name or not path.exists():
        raise UserError(
            "the run's result is gone", where=folder.path, do="Delete the run's folder."
        )
    return path


def _models(checkpoint: str, folder: RunFolder, file: Path) -> tuple[Any, Any, Any]:
    base = host.load_checkpoint(host.model_path("checkpoints", checkpoint))
    model, clip, vae = _as_trained(folder, base)
    return (*host.patch(model, clip, file, 1.0, 1.0), vae)


def _as_trained(folder: RunFolder, models: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """MODEL with the prediction type that it was trained with."""
    base = read_receipt(folder).get("base", {})
    if base.get("family") == "sd1" and base.get("prediction_type") == "v_prediction":
        return host.predict_v(models[0]), *models[1:]
    return models


SPLIT = (
    "MODEL, CLIP and VAE stay empty: load the base's files with ComfyUI's own nodes, and put the "
    "adapter on with Apply Adapter"
)


def _small(base: str) -> str:
    return (
        f"MODEL, CLIP and VAE stay empty: {base} is too small for ComfyUI; SAMPLES shows the result"
    )


def _left_out() -> tuple[Any, Any, Any]:
    """In the place of models that are not loaded here: what needs them is not run, and no error."""
    from comfy_execution.graph import ExecutionBlocker

    return (ExecutionBlocker(None),) * 3


def _pictures(folder: RunFolder, step: int | None) -> tuple[Tensor, Tensor]:
    """Sample images and the loss plot."""
    curve = folder.path / "loss.png"
    return (
        host.load_images(samples_of(folder, step)),
        host.load_images([curve] if curve.is_file() else []),
    )


def publish(file: Path) -> Path:
    """Lists a checkpoint among the host's, without a second copy where the disk can do that."""
    target = host.model_folder("checkpoints") / host.RUNS / file.name
    if target.exists() and _is_copy(target, file):
        return target
    copy_file(file, target, link=True)
    return target


def _is_copy(target: Path, file: Path) -> bool:
    there, here = target.stat(), file.stat()
    if os.path.samestat(there, here):
        return True
    return there.st_size == here.st_size and there.st_mtime >= here.st_mtime


def look_at_base(checkpoint: str = "", **_: Any) -> str:
    """The fingerprint of the training nodes."""
    if checkpoint in EMBEDDED:
        return checkpoint
    try:
        facts = host.model_path("checkpoints", checkpoint).stat()
    except (UserError, OSError):
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


def _checkpoints() -> list[str]:
    return [*host.model_names("checkpoints"), *EMBEDDED]


CHECKPOINT = Input(
    "checkpoint",
    "COMBO",
    "Checkpoint",
    "The model to start from: a file in models/checkpoints, or pocket or pocket-flow, the tiny "
    "models that come with the engine.",
    choices=_checkpoints,
)
_CONCEPT = Input("concept", CONCEPT, "Concept", "What is to be learned: from Images or Concepts.")
_SETTINGS = Input(
    "settings",
    SETTINGS,
    "Settings",
    "How to train. Without, the engine's defaults.",
    optional=True,
)
_PROMPTS = Input(
    "sample_prompts",
    "STRING",
    "Sample prompts",
    "Images to generate during training and at the end, a prompt on each line. Empty: the instance "
    "prompt.",
    "",
    multiline=True,
)
_EVERY = Input(
    "sample_every",
    "INT",
    "Samples every … steps",
    "How often they are made and shown on the node. 0: as the settings say, and at the end.",
    0,
    0,
    1_000_000,
)


def _name(default: str) -> Input:
    text = "Name of the run, of its folder in output/dreambooth and of the result."
    return Input("name", "STRING", "Name", text, default)


_MODELS = (
    Output("MODEL", "MODEL", "The model with what was learned."),
    Output("CLIP", "CLIP", "The text encoder with what was learned."),
    Output("VAE", "VAE", "The base's VAE."),
)
_IMAGES = (
    Output("IMAGE", "SAMPLES", "The last sample images."),
    Output("IMAGE", "LOSS", "The curve of the loss."),
)

TRAIN_LORA = Node(
    f"{PREFIX}TrainLora",
    "Train LoRA (DreamBooth)",
    "Learns a subject or style as an adapter. The same inputs are not trained twice, more steps go "
    "on where the run ended, and cancelling keeps what was learned.",
    (
        CHECKPOINT,
        _CONCEPT,
        _name("my-lora"),
        Input(
            "method",
            "COMBO",
            "Method",
            "lora is the usual choice; dora, loha, lokr and oft are its relatives.",
            "lora",
            choices=KINDS,
        ),
        _PROMPTS,
        _EVERY,
        Input(
            "rank",
            "INT",
            "Rank",
            "How much the adapter can hold, and how large its file is: 4 to 128 for lora and dora. "
            "0: as the settings say.",
            0,
            0,
            1024,
        ),
        _SETTINGS,
        BASE_INPUT,
    ),
    (*_MODELS, ADAPTER_OUTPUT, *_IMAGES, TOLD),
    train_adapter,
    is_output=True,
    fingerprint=look_at_base,
)

TRAIN_CHECKPOINT = Node(
    f"{PREFIX}TrainCheckpoint",
    "Train Checkpoint (DreamBooth)",
    "Fine-tunes the whole model and lists the result in models/checkpoints/dreambooth. Needs much "
    "more memory and disk than Train LoRA.",
    (
        CHECKPOINT,
        _CONCEPT,
        _name("my-model"),
        _PROMPTS,
        _EVERY,
        Input(
            "resumable",
            "BOOLEAN",
            "Keep the state",
            "Keep what is needed to resume with more steps later: several times the model's size.",
            False,
        ),
        _SETTINGS,
    ),
    (
        *_MODELS,
        Output("STRING", "NAME", "The name of the new checkpoint."),
        *_IMAGES,
        TOLD,
    ),
    train_checkpoint,
    is_output=True,
    fingerprint=look_at_base,
)

NODES = (TRAIN_LORA, TRAIN_CHECKPOINT)
