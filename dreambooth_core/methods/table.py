"""The methods: one record each. Standard library only, so that hosts can offer them.

What does the training is a class with torch in a file of its own, imported when it is used.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.formats.layouts import LAYOUTS
from dreambooth_core.registry import Registry

ARRANGEMENTS = ("run", "diffusers", "peft", "shivam")
"""Where results lie and what they are called."""


@dataclass(frozen=True)
class MethodSpec:
    """What is known of one method before torch is imported."""

    name: str
    help: str
    """What it is for, in a sentence or two."""
    target: str
    """The class that trains it, a ``dreambooth_core.methods.base.Method``: ``module:Class``."""
    trains_base: bool = False
    """Whether weights of the base itself are trained: its result is a whole model."""
    learns_token: bool = False
    """Whether a word of the prompt is learned: it must be in the captions."""
    is_adapter: bool = True
    """Whether its result is an adapter file (beside which a learned token may lie)."""
    layouts: tuple[str, ...] = LAYOUTS
    """The namings of :data:`LAYOUTS` that can hold its result."""
    arrangements: tuple[str, ...] = ARRANGEMENTS
    """Those of :data:`ARRANGEMENTS` that have a place for it."""


METHODS: Registry[MethodSpec] = Registry("method", where="method.kind", group="dreambooth.methods")

_ADAPTERS = "dreambooth_core.methods.adapters"
_TOKENS = "dreambooth_core.methods.tokens"

METHODS.add(
    MethodSpec("lora", "a small adapter file, the usual choice.", f"{_ADAPTERS}:Lora"),
    MethodSpec("dora", "LoRA with a magnitude for each output; often closer.", f"{_ADAPTERS}:Dora"),
    MethodSpec(
        "loha",
        "two low-rank products multiplied: more rank for the same size.",
        f"{_ADAPTERS}:Loha",
        layouts=("host", "kohya", "comfyui", "peft"),
        arrangements=("run", "peft"),
    ),
    MethodSpec(
        "lokr",
        "a Kronecker product: the smallest files.",
        f"{_ADAPTERS}:Lokr",
        layouts=("host", "kohya", "comfyui", "peft"),
        arrangements=("run", "peft"),
    ),
    MethodSpec(
        "oft",
        "rotations of the layers; written as the whole change of each weight, so its files are "
        "many times larger.",
        f"{_ADAPTERS}:Oft",
        layouts=("host", "kohya", "comfyui"),
        arrangements=("run",),
    ),
    MethodSpec(
        "textual_inversion",
        "learns a word and leaves the model as it is; a tiny file.",
        f"{_TOKENS}:TextualInversion",
        learns_token=True,
        is_adapter=False,
        arrangements=("run",),
    ),
    MethodSpec(
        "pivotal",
        "a word and a LoRA together.",
        f"{_TOKENS}:PivotalTuning",
        learns_token=True,
        arrangements=("run",),
    ),
    MethodSpec(
        "full",
        "all weights of the model; large files, most memory.",
        "dreambooth_core.methods.full:FullMethod",
        trains_base=True,
        is_adapter=False,
    ),
)
