"""Whether a configuration can run, found out before anything is written or loaded.

``check`` and ``train`` ask here, so that neither refuses what the other takes. Nothing is checked
twice in other words: what a run is made of is made here too, only as small as can be: models
without their weights, an optimizer of one number.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.data.concepts import Concept, gather, with_marks
from dreambooth_core.data.items import Items
from dreambooth_core.data.marks import require_base
from dreambooth_core.data.plan import BatchPlan, Size
from dreambooth_core.data.prior import ClassImages
from dreambooth_core.devices import choose_device, make_precision
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.methods.base import Trainable, method_for
from dreambooth_core.methods.quantized import require_package
from dreambooth_core.methods.table import METHODS
from dreambooth_core.optim.build import ParamGroup, try_out
from dreambooth_core.optim.options import rates
from dreambooth_core.options import TrainConfig, with_resolution
from dreambooth_core.options.combinations import refuse_settings
from dreambooth_core.trainer import publish
from dreambooth_core.trainer.distributed import Processes
from dreambooth_core.trainer.prepare import class_images, image_precision
from dreambooth_core.trainer.validation import sampling_settings


@dataclass(frozen=True)
class Decision:
    """What was found out about a configuration that can run."""

    config: TrainConfig
    device: torch.device
    concepts: list[Concept]
    """With the inventory of their folders, class images left out."""
    items: Items
    plan: BatchPlan
    parts: Components
    """The base, its weights unread unless they were asked for."""
    trainable: dict[str, int]
    """Trained parameters by component."""
    class_images: dict[str, ClassImages]
    """By class prompt; which are there is known only where the base's weights were read."""
    steps: int
    """Optimizer steps of the whole run."""


def decide(
    config: TrainConfig,
    *,
    processes: Processes | None = None,
    elsewhere: bool = False,
    weights: bool = False,
) -> Decision:
    """Decides whether a run can be, with its images, its base and this machine.

    Args:
        config: what :func:`dreambooth_core.config.loading.load` gave.
        processes: this process among those of the run, if it has joined them.
        elsewhere: the run will be in another process, which may see devices that this one does
            not: what depends on the device is left to that one.
        weights: read the base's weights too, as class images already there are known by them.

    Raises:
        UserError: the first thing in the way, and where it was set.
    """
    device = torch.device("cpu")
    if processes is not None:
        device = processes.device
    elif not elsewhere:
        device = choose_device(config.run.device)
    count = processes.count if processes else int(os.environ.get("WORLD_SIZE") or 1)
    refuse_settings(config, device="" if elsewhere else device.type, processes=count)
    publish.check(config)
    _require_packages(config)
    if config.memory.compile and not elsewhere:
        _require_compiler(device)
    precision = make_precision(config.run.mixed_precision, device, tf32=config.memory.tf32)
    image_precision(config, precision)
    parts = load_base(config.base, weights=weights)
    config = with_resolution(config, parts.native_size)
    concepts = gather(
        config.concepts,
        config.data,
        config.prior,
        seeks_best=config.seeks_best,
        must_hold_out=config.needs_held_out,
        keeps_answers=METHODS[config.method.kind].trains_base,
    )
    if config.marks.file and weights:
        require_base(config.marks.file, parts.fingerprint)
    concepts = with_marks(concepts, config.marks, pairs=config.prefers)
    items = Items(concepts, config.data, seed=config.run.seed)
    plan = items.plan(
        batch_size=config.run.batch_size,
        accumulation=config.run.gradient_accumulation_steps,
        processes=count,
    )
    states = {
        concept.options.class_prompt: class_images(config, concept, parts.fingerprint)
        for concept in concepts
        if config.prior.makes_images
    }
    refuse_for_family(config, parts, [entry.size for entry in items.entries])
    trainables = _attach(config, parts, items, precision.trained)
    groups = parameter_groups(config, trainables, count)
    try_out(config.optim, groups, None if elsewhere else device)
    parts.family.objective(config.objective, parts)
    if config.validation.prompts or config.validation.like != "none":
        sampling_settings(config.validation, parts, items.entries[0].size)
    if not elsewhere and config.memory.attention != "auto":
        apply_attention(parts.denoiser, config.memory.attention, device, precision.dtype)
    return Decision(
        config=config,
        device=device,
        concepts=concepts,
        items=items,
        plan=plan,
        parts=parts,
        trainable={group.component: group.count for group in trainables},
        class_images=states,
        steps=config.total_steps(plan.steps_per_epoch),
    )


def told_captions(parts: Components, items: Items) -> dict[str, dict[str, Any]]:
    """The first caption of each kind, with its tokens, for reports and receipts."""
    return {
        kind: {"text": text, "tokens": parts.family.first_tokens(parts, text)}
        for kind, text in items.first_captions().items()
    }


def refuse_for_family(config: TrainConfig, parts: Components, sizes: Iterable[Size]) -> None:
    """Raises ``UserError`` for what a base of this family, and of this size, cannot do."""
    family = parts.family
    method = METHODS[config.method.kind]
    if not family.trains_text and (config.method.train_text_encoder or method.learns_token):
        raise UserError(
            f"the text encoder of {family.label} cannot be trained",
            where="method.kind" if method.learns_token else "method.train_text_encoder",
            do="Choose another method." if method.learns_token else "Switch it off.",
        )
    step = family.size_step
    for height, width in dict.fromkeys(sizes):
        if height % step or width % step:
            raise UserError(
                f"{family.label} takes images whose sides are multiples of {step}, "
                f"not {width} x {height}",
                where="data.resolution" if height == width else "data.bucket_reso_steps",
                do=f"Choose a multiple of {step}.",
            )
        family.latent_shape(parts.configs, height, width)


def parameter_groups(
    config: TrainConfig, trainables: list[Trainable], processes: int
) -> list[ParamGroup]:
    """What is trained, each part with its learning rate."""
    images = config.run.batch_size * config.run.gradient_accumulation_steps * processes
    full = METHODS[config.method.kind].trains_base
    learning = rates(config.optim, full=full, images=images)
    found = []
    for group in trainables:
        rate, decay = learning.unet, None
        if group.is_token:
            rate, decay = learning.embedding, 0.0
        elif group.is_text:
            rate, decay = learning.text, config.optim.text_weight_decay
        found.append(ParamGroup(group.component, list(group.parameters.values()), rate, decay))
    return found


def _attach(
    config: TrainConfig, parts: Components, items: Items, dtype: torch.dtype
) -> list[Trainable]:
    """What would be trained, on the meta device: only counted."""
    for model in parts.models.values():
        model.to("meta")
    method = method_for(config.method, parts)
    trainables = method.attach(config.run.seed, dtype)
    method.caption_for_proof(list(items.first_captions().values()))
    return trainables


def _require_packages(config: TrainConfig) -> None:
    for package in ("tensorboard", "wandb"):
        if getattr(config.log, package) and not _is_installed(package):
            raise UserError(
                f"the package {package} is not installed",
                where=f"log.{package}",
                do=f"Install it into the engine's environment (pip install {package}), or set "
                f"log.{package} to false.",
            )
    if config.memory.quantize != "no":
        require_package(config.memory.quantize)


def _require_compiler(device: torch.device) -> None:
    """What torch.compile needs: a C++ compiler for CPUs, Triton for GPUs."""
    if device.type == "cpu":
        named = (os.environ.get("CXX", ""), "g++", "c++", "clang++", "cl")
        there = any(name and shutil.which(name) for name in named)
        what = "no C++ compiler was found"
    else:
        there = importlib.util.find_spec("triton") is not None
        what = "Triton, which compiles for GPUs, is not installed"
    if not there:
        raise UserError(
            what, where="memory.compile", do="Install it, or set memory.compile to false."
        )


def _is_installed(package: str) -> bool:
    if package in sys.modules:
        return sys.modules[package] is not None
    return importlib.util.find_spec(package) is not None
