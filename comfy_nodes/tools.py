"""Merge, Extract, Resize, Bake, Convert: the engine's commands as nodes, in the warm helper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.commands.merge import METHODS, SIGNS
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.requests import WeightedFile

from . import engine, host
from .adapters import ADAPTER_INPUT, ADAPTER_OUTPUT, Adapter, made, strength
from .description import ADAPTER, FILE_NAME, PREFIX, STACK, Input, Node, Output, Result

NONE = "(none)"
SLOTS = 4


@dataclass(frozen=True)
class Part:
    """An adapter and how strongly it counts."""

    adapter: Adapter
    weight: float
    text_weight: float

    @property
    def file(self) -> WeightedFile:
        return WeightedFile(self.adapter.path, self.weight)

    @property
    def identity(self) -> str:
        """Changes with the file, too."""
        path, facts = self.adapter.path, self.adapter.path.stat()
        return f"{path} {self.weight} {self.text_weight} {facts.st_size} {facts.st_mtime_ns}"


def weigh(
    adapter: Adapter,
    weight: float,
    text_weight: float,
    stack: tuple[Part, ...] | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Weighted Adapter."""
    return Result(((*(stack or ()), Part(adapter, weight, text_weight)),))


def merge(
    method: str,
    rank: int,
    density: float,
    sign: str,
    random_seed: int,
    base: str,
    stack: tuple[Part, ...] | None = None,
    node_id: str | None = None,
    **slots: Any,
) -> Result:
    """Runs Merge Adapters."""
    parts = list(stack or ())
    for number in range(1, SLOTS + 1):
        adapter, weight = slots.get(f"adapter_{number}"), slots[f"weight_{number}"]
        if adapter is not None:
            parts.append(Part(adapter, weight, weight))
    if not parts:
        raise UserError("nothing to merge", do="Link at least one adapter.")
    asked = {
        "method": method,
        "density": density,
        "sign": sign,
        "seed": random_seed,
        "rank": rank or None,
        "base": _base(base),
    }
    target = made("merged", repr(asked), *(part.identity for part in parts))
    asked |= _weighed(parts)
    report = engine.task("merge", asked | {"out": target}, host.Progress(node_id))
    lines = [
        f"{len(parts)} adapters by {report['method']}, rank {', '.join(map(str, report['ranks']))}",
        f"difference from the exact sum: {report['error']:.2%}",
        *report["warnings"],
    ]
    return Result((Adapter(target, "-".join(part.adapter.name for part in parts)[:80]),), lines)


def _weighed(parts: list[Part]) -> dict[str, Any]:
    return {
        "adapters": [part.file for part in parts],
        "te_weight": [part.text_weight for part in parts],
    }


def _base(name: str) -> Path | None:
    return None if name == NONE else host.model_path("checkpoints", name)


def extract(base: str, tuned: str, rank: int, energy: float, node_id: str | None = None) -> Result:
    """Runs Extract."""
    files = [host.model_path("checkpoints", name) for name in (base, tuned)]
    size = _size(rank, energy)
    target = made("extracted", repr(size), *(f"{f} {f.stat().st_mtime_ns}" for f in files))
    asked = {"base": files[0], "tuned": files[1], "target": target, **size}
    report = engine.task("extract", asked, host.Progress(node_id))
    lines = [
        f"lost by cutting to the rank: {report['error']:.2%}",
        f"left out, in norms, biases or embeddings: {report['left_out']:.2%}",
    ]
    return Result((Adapter(target, f"{files[1].stem}-extracted"),), lines)


def resize(
    adapter: Adapter, rank: int, energy: float, base: str, node_id: str | None = None
) -> Result:
    """Runs Resize."""
    asked = {**_size(rank, energy), "base": _base(base)}
    target = made("resized", repr(asked), Part(adapter, 1.0, 1.0).identity)
    asked |= {"source": adapter.path, "target": target}
    report = engine.task("resize", asked, host.Progress(node_id))
    ranks = sorted(set(report["ranks"].values()))
    lines = [f"rank {', '.join(map(str, ranks))}", f"lost: {report['error']:.2%} of the change"]
    return Result((Adapter(target, f"{adapter.name}-resized"),), lines)


def _size(rank: int, energy: float) -> dict[str, Any]:
    if not rank and not energy:
        raise UserError("neither a rank nor an energy is given")
    return {"rank": rank or None, "energy": energy or None}


def bake(
    checkpoint: str,
    name: str,
    dtype: str,
    weight: float,
    adapter: Adapter | None = None,
    stack: tuple[Part, ...] | None = None,
    node_id: str | None = None,
) -> Result:
    """Runs Bake to Checkpoint."""
    parts = [*(stack or ()), *([Part(adapter, weight, weight)] if adapter is not None else [])]
    if not parts:
        raise UserError("nothing to bake", do="Link an adapter or a stack.")
    base = host.model_path("checkpoints", checkpoint)
    target = host.target_path("checkpoints", name or f"{base.stem}-{parts[0].adapter.name}")
    asked = {"base": base, "out": target, "dtype": None if dtype == AS_IT_IS else dtype}
    report = engine.task("bake", asked | _weighed(parts), host.Progress(node_id))
    lines = [
        f"saved as {target}",
        f"change: {report['change']:.2%} of the weights",
        f"lost by rounding to the stored type: {report['rounding']:.2%} of the change",
    ]
    return Result((host.listed_name("checkpoints", target),), lines)


def convert(
    checkpoint: str, name: str, layout: str, dtype: str, node_id: str | None = None
) -> Result:
    """Runs Convert Checkpoint."""
    source = host.model_path("checkpoints", checkpoint)
    single = layout != FOLDER
    kind = "checkpoints" if single else "diffusers"
    target = host.target_path(
        kind,
        name or f"{source.stem}-converted",
        ".safetensors" if single else "",
    )
    asked: dict[str, Any] = {"source": source, "target": target}
    if dtype in PRECISIONS:
        asked[PRECISIONS[dtype]] = True
    report = engine.task("convert", asked, host.Progress(node_id))
    lines = [f"saved as {target}", *report.get("warnings", [])]
    return Result((host.listed_name(kind, target),), lines)


def _checkpoints() -> list[str]:
    return host.model_names("checkpoints")


def _or_none() -> list[str]:
    return [NONE, *_checkpoints()]


def look_at_checkpoints(base: str = "", tuned: str = "", checkpoint: str = "", **_: Any) -> str:
    """Fingerprint: of the checkpoints that a node names."""
    facts = []
    for name in (base, tuned, checkpoint):
        if name and name != NONE:
            try:
                found: Path = host.model_path("checkpoints", name)
                facts.append(f"{found.stat().st_size} {found.stat().st_mtime_ns}")
            except (UserError, OSError):
                facts.append("gone")
    return " ".join(facts)


FOLDER = "diffusers folder"
AS_IT_IS = "as it is"
PRECISIONS = {"fp16": "half", "bf16": "bf16", "fp32": "float"}
"""How ``convert`` calls them."""
_DTYPES = (AS_IT_IS, "fp16", "bf16", "fp32")
_RANK = Input("rank", "INT", "Rank", "The largest rank. 0: by energy alone.", 32, 0, 4096)
_ENERGY = Input(
    "energy",
    "FLOAT",
    "Energy",
    "Keep this share of every change's energy, for example 0.95. 0: by rank alone.",
    0.0,
    0.0,
    1.0,
    0.01,
)
_BASE = Input(
    "base",
    "COMBO",
    "Base",
    "The base model, for adapters that depend on it (DoRA, OFT); else (none).",
    NONE,
    choices=_or_none,
)
_DTYPE = Input(
    "dtype", "COMBO", "Precision", "Type of the stored numbers.", AS_IT_IS, choices=_DTYPES
)
_STACK = Input("stack", STACK, "Stack", "More adapters, from Weighted Adapter.", optional=True)
_NAME = Input(
    "name",
    "STRING",
    "Name",
    "File name; a number is added if it is taken. Empty: made of the inputs' names.",
    "",
)
_FILE = Output(FILE_NAME, "NAME", "The name of the new file, also for the host's loaders.")


def _checkpoint(name: str, label: str, text: str) -> Input:
    return Input(name, "COMBO", label, text, choices=_checkpoints)


def _slots() -> tuple[Input, ...]:
    found: list[Input] = []
    for n in range(1, SLOTS + 1):
        found.append(
            Input(
                f"weight_{n}",
                "FLOAT",
                f"Weight {n}",
                f"How strongly adapter {n} counts; negative takes it away.",
                1.0,
                -20.0,
                20.0,
                0.01,
            )
        )
    for n in range(1, SLOTS + 1):
        text = "An adapter to merge. More than four: chain Weighted Adapter nodes into the stack."
        found.append(Input(f"adapter_{n}", ADAPTER, f"Adapter {n}", text, optional=True))
    return tuple(found)


WEIGH = Node(
    f"{PREFIX}WeightedAdapter",
    "Weighted Adapter (DreamBooth)",
    "Puts an adapter with weights of its own on a stack, for Merge and Bake.",
    (
        ADAPTER_INPUT,
        strength("weight", "Weight", "model"),
        strength("text_weight", "Weight, text encoder", "text encoder"),
        Input("stack", STACK, "Stack", "Adapters that come before this one.", optional=True),
    ),
    (Output(STACK, "STACK", "For Merge, Bake, or another Weighted Adapter."),),
    weigh,
    group="Adapters",
)

MERGE = Node(
    f"{PREFIX}MergeAdapters",
    "Merge Adapters (DreamBooth)",
    "Adds up any number of adapters, of any ranks and kinds, with weights. cat is the exact sum; "
    "svd cuts it to a rank; the others are TIES, DARE and pruning.",
    (
        Input("method", "COMBO", "Method", "How they are added up.", "cat", choices=METHODS),
        Input(
            "rank", "INT", "Rank", "Rank to cut to, for svd methods. 0: the largest.", 0, 0, 4096
        ),
        Input(
            "density",
            "FLOAT",
            "Density",
            "Share of numbers that TIES, DARE and pruning keep.",
            0.5,
            0.0,
            1.0,
            0.01,
        ),
        Input(
            "sign",
            "COMBO",
            "Sign",
            "TIES: whether the sum or the number of votes decides a sign.",
            "total",
            choices=SIGNS,
        ),
        Input("random_seed", "INT", "Seed", "For DARE, which draws at random.", 0, 0, 2**53 - 1),
        _BASE,
        *_slots(),
        _STACK,
    ),
    (ADAPTER_OUTPUT,),
    merge,
    group="Adapters",
    fingerprint=look_at_checkpoints,
)

EXTRACT = Node(
    f"{PREFIX}ExtractAdapter",
    "Extract Adapter (DreamBooth)",
    "Gets an adapter out of two checkpoints: what the second learned beyond the first.",
    (
        _checkpoint("base", "Base", "The model before training."),
        _checkpoint("tuned", "Trained", "The model after training."),
        _RANK,
        _ENERGY,
    ),
    (ADAPTER_OUTPUT,),
    extract,
    group="Adapters",
    fingerprint=look_at_checkpoints,
)

RESIZE = Node(
    f"{PREFIX}ResizeAdapter",
    "Resize Adapter (DreamBooth)",
    "Changes an adapter's rank, keeping the largest part of every change. Any kind becomes a LoRA.",
    (ADAPTER_INPUT, _RANK, _ENERGY, _BASE),
    (ADAPTER_OUTPUT,),
    resize,
    group="Adapters",
    fingerprint=look_at_checkpoints,
)

BAKE = Node(
    f"{PREFIX}BakeCheckpoint",
    "Bake to Checkpoint (DreamBooth)",
    "Writes adapters into a checkpoint, as a new file in models/checkpoints.",
    (
        _checkpoint("checkpoint", "Checkpoint", "The model that they are written into."),
        _NAME,
        _DTYPE,
        strength("weight", "Weight", "checkpoint"),
        Input("adapter", ADAPTER, "Adapter", "An adapter to write into it.", optional=True),
        _STACK,
    ),
    (_FILE,),
    bake,
    group="Checkpoints",
    is_output=True,
    fingerprint=look_at_checkpoints,
)

CONVERT = Node(
    f"{PREFIX}ConvertCheckpoint",
    "Convert Checkpoint (DreamBooth)",
    "Writes a checkpoint in another precision, or as a diffusers folder.",
    (
        _checkpoint("checkpoint", "Checkpoint", "The file to convert."),
        _NAME,
        Input(
            "layout",
            "COMBO",
            "Format",
            "A single file for models/checkpoints, or a folder in models/diffusers.",
            "single file",
            choices=("single file", FOLDER),
        ),
        _DTYPE,
    ),
    (_FILE,),
    convert,
    group="Checkpoints",
    is_output=True,
    fingerprint=look_at_checkpoints,
)

NODES = (WEIGH, MERGE, EXTRACT, RESIZE, BAKE, CONVERT)
