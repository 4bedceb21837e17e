"""Train LoRA, Train Embedding and Train Checkpoint: a run of the engine inside a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.bases.embedded import EMBEDDED
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import RunFolder, read_receipt, sanitise
from dreambooth_core.methods.table import METHODS

from . import engine, host
from .adapters import ADAPTER_OUTPUT, Adapter
from .bases import BASE_INPUT, SplitBase
from .concepts import Concept
from .description import (
    ADAPTER,
    CONCEPT,
    FILE_NAME,
    PREFIX,
    SETTINGS,
    TOLD,
    Input,
    Node,
    Output,
    Result,
)
from .learned import WORD_OUTPUT, Learned, learned, publish
from .requests import STARTS_FROM, Draft, Found, Request, find, prepare
from .settings import Settings, field_of, set_by, widget
from .watching import samples_of, train, watch

if TYPE_CHECKING:
    from torch import Tensor

FULL = "full"
WORDS = tuple(name for name, spec in METHODS.ours().items() if spec.learns_token)
"""Methods that learn a word of the prompt."""
KINDS = tuple(name for name in METHODS if name not in (*WORDS, FULL))
"""Adapters, also those that other packages bring."""
WORD_FIELDS = (
    "method.placeholder_token",
    "method.initializer_token",
    "method.num_vectors",
    "optim.embedding_lr",
)


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
    start: Adapter | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Train LoRA."""
    values = {"method.kind": method, "save.at_end": True}
    values |= {"method.rank": rank} if rank else {}
    values |= {STARTS_FROM: str(start.path)} if start else {}
    values |= _samples(concept, sample_prompts, sample_every)
    request = Draft(name, base or checkpoint, concept, settings, values).request()
    folder, step, lines = fulfil(request, host.Progress(node_id))
    found = learned(folder, step)
    models, told = (
        _models(checkpoint, folder, found) if base is None else (host.left_out(3), [SPLIT])
    )
    return Result((*models, found.adapter, *_images(folder, step)), [*lines, *told])


def train_word(
    checkpoint: str,
    concept: Sequence[Concept],
    name: str,
    method: str,
    sample_prompts: str,
    sample_every: int,
    rank: int,
    settings: Settings | None = None,
    node_id: str | None = None,
    **word: Any,
) -> Result:
    """Runs Train Embedding."""
    values = {"method.kind": method, "save.at_end": True}
    values |= {"method.rank": rank} if rank and METHODS[method].is_adapter else {}
    values |= set_by(WORD_WIDGETS, word, TRAIN_EMBEDDING.label)
    values |= _samples(concept, sample_prompts, sample_every)
    request = Draft(name, checkpoint, concept, settings, values).request()
    folder, step, lines = fulfil(request, host.Progress(node_id))
    found = learned(folder, step)
    models, told = _models(checkpoint, folder, found)
    outputs = (*models, found.adapter, f"embedding:{found.name()}", *_images(folder, step))
    return Result(outputs, [*lines, *found.lines, *told])


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
    file = learned(folder, step).file
    assert file is not None, "it is a whole model"
    listed = publish(file, "checkpoints", file.name)
    models, told = _unless_small(checkpoint, lambda: _trained(folder, listed))
    outputs = (*models, host.listed_name("checkpoints", listed), *_images(folder, step))
    return Result(outputs, [*lines, f"saved as {listed}", *told])


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


Models = tuple[Any, Any, Any]
"""MODEL, CLIP and VAE."""


def _unless_small(checkpoint: str, load: Callable[[], Models]) -> tuple[Models, list[str]]:
    """What the host loads; nothing, and why, where the base is one that comes with the engine."""
    if checkpoint not in EMBEDDED:
        return load(), []
    told = f"{checkpoint} is too small for ComfyUI; SAMPLES shows the result"
    return host.left_out(3), [f"MODEL, CLIP and VAE stay empty: {told}"]


def _models(checkpoint: str, folder: RunFolder, found: Learned) -> tuple[Models, list[str]]:
    """The base with what was learned, and what is to be said of it."""

    def load() -> Models:
        model, clip, vae = _trained(folder, host.model_path("checkpoints", checkpoint))
        return (*found.put_on(model, clip), vae)

    return _unless_small(checkpoint, load)


def _trained(folder: RunFolder, checkpoint: Path) -> Models:
    """A checkpoint's models, MODEL with the prediction type that it was trained with."""
    models = host.load_checkpoint(checkpoint)
    base = read_receipt(folder).get("base", {})
    if base.get("family") == "sd1" and base.get("prediction_type") == "v_prediction":
        return host.predict_v(models[0]), *models[1:]
    return models


SPLIT = (
    "MODEL, CLIP and VAE stay empty: load the base's files with ComfyUI's own nodes, and put the "
    "adapter on with Apply Adapter"
)


def _images(folder: RunFolder, step: int | None) -> tuple[Tensor, Tensor]:
    """Sample images and the loss plot."""
    curve = folder.path / "loss.png"
    return (
        host.load_images(samples_of(folder, step)),
        host.load_images([curve] if curve.is_file() else []),
    )


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
        Input(
            "start",
            ADAPTER,
            "Start from",
            "An adapter that training starts from, of any rank. Without: from nothing.",
            optional=True,
        ),
    ),
    (*_MODELS, ADAPTER_OUTPUT, *_IMAGES, TOLD),
    train_adapter,
    is_output=True,
    fingerprint=look_at_base,
)

WORD_WIDGETS = [
    (said, made)
    for said in map(field_of, WORD_FIELDS)
    if (made := widget(said, said["key"].partition(".")[0])) is not None
]

TRAIN_EMBEDDING = Node(
    f"{PREFIX}TrainEmbedding",
    "Train Embedding (DreamBooth)",
    "Learns a word of the prompt by textual inversion, or a word and a LoRA together (pivotal "
    "tuning), for Stable Diffusion 1, 2 and XL. The instance prompt must have the word in it. The "
    "CLIP from here knows it, and it is listed in models/embeddings/dreambooth.",
    (
        CHECKPOINT,
        _CONCEPT,
        _name("my-word"),
        Input(
            "method",
            "COMBO",
            "Method",
            "textual_inversion: the word alone, and the model stays as it is. pivotal: a word and "
            "a LoRA.",
            WORDS[0],
            choices=WORDS,
        ),
        *(made for _, made in WORD_WIDGETS),
        _PROMPTS,
        _EVERY,
        Input("rank", "INT", "Rank", "Of pivotal's LoRA. 0: as the settings say.", 0, 0, 1024),
        _SETTINGS,
    ),
    (*_MODELS, ADAPTER_OUTPUT, WORD_OUTPUT, *_IMAGES, TOLD),
    train_word,
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
        Output(FILE_NAME, "NAME", "The name of the new checkpoint, also for Load Checkpoint."),
        *_IMAGES,
        TOLD,
    ),
    train_checkpoint,
    is_output=True,
    fingerprint=look_at_base,
)

NODES = (TRAIN_LORA, TRAIN_EMBEDDING, TRAIN_CHECKPOINT)
