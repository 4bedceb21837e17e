"""Load, look at, apply and save adapters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.disk import copy_file
from dreambooth_core.disk.reading import MAX_JSON, open_regular, parse_json
from dreambooth_core.errors import UserError

from . import engine, host
from .blocks import ALL, PRESETS, read_factors, read_schedule
from .description import ADAPTER, FILE_NAME, PREFIX, Input, Node, Output, Result
from .patching import patch

if TYPE_CHECKING:
    from torch import Tensor

HOST_NAMES = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
"""What ComfyUI patches. It passes over other names without a word."""


@dataclass(frozen=True)
class Adapter:
    """An adapter on its way through the graph: a file in names that the host takes."""

    path: Path
    name: str
    step: int | None = None


ADAPTER_INPUT = Input(
    "adapter", ADAPTER, "Adapter", "From Train LoRA, Load Adapter, Runs or Merge."
)
ADAPTER_OUTPUT = Output(ADAPTER, "ADAPTER", "For Apply, Merge, Save and the others.")


def strength(name: str, label: str, of: str) -> Input:
    """A strength's input."""
    text = f"How strongly the adapter changes the {of}. 0: not at all; negative: the other way."
    return Input(name, "FLOAT", label, text, 1.0, -20.0, 20.0, 0.01)


# --- load ---------------------------------------------------------------------------------------
def load(lora: str, node_id: str | None = None) -> Result:
    """Runs Load Adapter."""
    path = host.model_path("loras", lora)
    if is_host_named(path):
        return Result((Adapter(path, path.stem),), ["in names that this host takes"])
    return Result(
        (Adapter(converted(path), path.stem),), ["converted to names that this host takes"]
    )


def is_host_named(path: Path) -> bool:
    """Whether the host takes every name in a file; only safetensors can be looked into."""
    names = header_of(path)
    return bool(names) and all(name.startswith(HOST_NAMES) for name in names)


def header_of(path: Path) -> list[str]:
    """The tensors' names in a safetensors file; none for any other file."""
    if path.suffix != ".safetensors":
        return []
    try:
        with open_regular(path) as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(path.stat().st_size, MAX_JSON):
                return []
            found = parse_json(file.read(length))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=path) from error
    return [name for name in found if name != "__metadata__"]


def converted(path: Path) -> Path:
    """A copy in kohya's names, made once for each state of the file."""
    target = made("converted", str(path), str(path.stat().st_mtime_ns), str(path.stat().st_size))
    if not target.is_file():
        engine.task("convert", {"source": path, "target": target, "layout": "host"})
    return target


def made(kind: str, *identity: str) -> Path:
    """Where a file that is made of others is kept: the same for the same identity."""
    name = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:24]
    folder = host.runs_folder() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}.safetensors"


def look_at_file(lora: str = "", **_: Any) -> str:
    """The fingerprint of Load Adapter."""
    try:
        facts = host.model_path("loras", lora).stat()
    except (UserError, OSError):
        return ""
    return f"{facts.st_size} {facts.st_mtime_ns}"


# --- apply --------------------------------------------------------------------------------------
def apply(
    model: Any,
    adapter: Adapter,
    strength_model: float,
    strength_clip: float,
    block_preset: str = ALL,
    blocks: str = "",
    schedule: str = "",
    clip: Any = None,
    node_id: str | None = None,
) -> Result:
    """Runs Apply Adapter."""
    factors = read_factors(block_preset, blocks, f"{APPLY.label}, Blocks")
    changing = read_schedule(schedule, f"{APPLY.label}, Strength schedule")
    strengths = (strength_model, strength_clip)
    return Result(patch(model, clip, adapter.path, *strengths, blocks=factors, schedule=changing))


# --- info ---------------------------------------------------------------------------------------
def info(adapter: Adapter, node_id: str | None = None) -> Result:
    """Runs Adapter Info."""
    lines = describe(engine.task("inspect", {"file": adapter.path}))
    return Result(("\n".join(lines),), lines)


def describe(report: dict[str, Any]) -> list[str]:
    """An inspection as lines."""

    def counted(values: dict[str, Any]) -> str:
        return ", ".join(f"{key} ({count})" for key, count in values.items()) or "none"

    lines = [
        str(report.get("label", "")),
        *(f"{each['host']} {each['text']}" for each in report.get("hosts") or []),
        f"method: {report.get('method')}, {report.get('dtype')}",
        f"modules: {counted(report.get('modules', {}))}",
        f"ranks: {counted(report.get('ranks', {}))}, alphas: {counted(report.get('alphas', {}))}",
    ]
    words = report.get("trigger_words") or []
    if words:
        lines.append(f"trigger words: {', '.join(words) if isinstance(words, list) else words}")
    settings = report.get("settings") or {}
    lines += [f"{key}: {value}" for key, value in settings.items()]
    for name in ("damaged", "zero"):
        if report.get(name):
            lines.append(f"{name}: {len(report[name])} modules")
    return lines


# --- save ---------------------------------------------------------------------------------------
def save(
    adapter: Adapter,
    name: str,
    title: str,
    trigger_words: str,
    preview: Tensor | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Save Adapter."""
    target = host.target_path("loras", name or adapter.name)
    metadata = {"modelspec.title": title.strip(), "modelspec.trigger_phrase": trigger_words.strip()}
    said = [f"{key}={value}" for key, value in metadata.items() if value]
    if said:
        asked = {"source": adapter.path, "target": target, "layout": "host", "metadata": said}
        engine.task("convert", asked)
    else:
        copy_file(adapter.path, target)
    if preview is not None:
        host.to_pictures(preview[:1])[0].save(target.with_suffix(".png"))
    lines = [f"saved as {target}", "press R to see it in LoRA lists"]
    return Result((host.listed_name("loras", target),), lines)


def _loras() -> list[str]:
    return host.model_names("loras")


LOAD = Node(
    f"{PREFIX}LoadAdapter",
    "Load Adapter (DreamBooth)",
    "Loads a LoRA, LoHa, LoKr, DoRA or OFT file from models/loras. Names that the host would "
    "silently pass over (diffusers, peft) are converted.",
    (Input("lora", "COMBO", "File", "A file in models/loras.", choices=_loras),),
    (ADAPTER_OUTPUT,),
    load,
    group="Adapters",
    fingerprint=look_at_file,
)

APPLY = Node(
    f"{PREFIX}ApplyAdapter",
    "Apply Adapter (DreamBooth)",
    "Puts an adapter onto MODEL and CLIP, wholly, by block, or changing while the sampler works. "
    "Strength 0 leaves them as they are.",
    (
        Input("model", "MODEL", "Model", "The model that is changed."),
        ADAPTER_INPUT,
        strength("strength_model", "Strength, model", "model"),
        strength("strength_clip", "Strength, CLIP", "text encoder"),
        Input(
            "block_preset",
            "COMBO",
            "Blocks",
            "Which blocks of the UNet count: IN for composition, OUT for detail and style.",
            ALL,
            choices=tuple(PRESETS),
        ),
        Input(
            "blocks",
            "STRING",
            "Factors of blocks",
            "Over that, NAME=FACTOR on each line: up_blocks.1=0.5, double_blocks.3=0, OUT05=0.3, "
            "MID=1; or a list of 17 or 26 (SD1), 12 or 20 (SDXL) numbers as LoRA Block Weight has "
            "them.",
            "",
            multiline=True,
        ),
        Input(
            "schedule",
            "STRING",
            "Strength schedule",
            "Factors of the model's strength over the sampling: 0=0, 0.3=1 begins after 30% of it, "
            "0.8=0 ends at 80%. They come with the prompts that the CLIP from here encodes. Empty: "
            "always.",
            "",
        ),
        Input("clip", "CLIP", "CLIP", "The text encoder that is changed.", optional=True),
    ),
    (
        Output("MODEL", "MODEL", "The model with the adapter."),
        Output("CLIP", "CLIP", "The text encoder with the adapter."),
    ),
    apply,
    group="Adapters",
)

INFO = Node(
    f"{PREFIX}AdapterInfo",
    "Adapter Info (DreamBooth)",
    "Says what an adapter is: method, rank, alpha, what it changes, trigger words, settings.",
    (ADAPTER_INPUT,),
    (Output("STRING", "TEXT", "The same as text."),),
    info,
    group="Adapters",
    is_output=True,
)

SAVE = Node(
    f"{PREFIX}SaveAdapter",
    "Save Adapter (DreamBooth)",
    "Writes an adapter into models/loras, with its metadata and an image, under a free name.",
    (
        ADAPTER_INPUT,
        Input(
            "name",
            "STRING",
            "Name",
            "File name, with subfolders if you like: pets/my-dog. A number is added if it exists. "
            "Empty: the adapter's own.",
            "",
        ),
        Input("title", "STRING", "Title", "Title in the file's metadata. Empty: as it is.", ""),
        Input(
            "trigger_words",
            "STRING",
            "Trigger words",
            "Words that call the subject, for the metadata. Empty: as they are.",
            "",
        ),
        Input(
            "preview",
            "IMAGE",
            "Preview",
            "An image to be shown in lists; its first image is saved beside the file.",
            optional=True,
        ),
    ),
    (Output(FILE_NAME, "NAME", "The name of the new file, also for Load LoRA."),),
    save,
    group="Adapters",
    is_output=True,
)

NODES = (LOAD, APPLY, INFO, SAVE)
