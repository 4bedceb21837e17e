"""Builds an optimizer by name, with the arguments that it really takes."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.errors import UserError
from dreambooth_core.optim.kinds import Kind, kind_of
from dreambooth_core.optim.options import OptimOptions


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with a learning rate of their own."""

    name: str
    """Where the parameters belong, for logs: ``unet``, ``text_encoder``, ``embedding`` …"""
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float | None = None
    """In place of the options'; 0 for learned tokens."""


@dataclass(frozen=True)
class _Recipe:
    """Where an optimizer is found and how our options are called there."""

    module: str
    name: str
    betas: tuple[float, ...] = (0.9, 0.999)
    """Defaults of ``beta1`` and ``beta2``; further ones are passed on as they are."""
    has_epsilon: bool = True
    momentum: str = ""
    """The argument that ``beta1`` becomes where there are no betas."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Arguments that differ from the library's own defaults, and why they do is said there."""


_FREE = {"warmup_steps": 0}
_RECIPES: dict[str, _Recipe] = {
    "adamw": _Recipe("torch.optim", "AdamW"),
    "adam": _Recipe("torch.optim", "Adam"),
    "sgd": _Recipe("torch.optim", "SGD", betas=(0.9,), has_epsilon=False, momentum="momentum"),
    # Relative steps would ignore the learning rate, and scaling by a weight's size would
    # change what it means.
    "adafactor": _Recipe(
        "transformers.optimization",
        "Adafactor",
        betas=(),
        has_epsilon=False,
        momentum="beta1",
        extra={"scale_parameter": False, "relative_step": False},
    ),
    "adamw8bit": _Recipe("bitsandbytes.optim", "AdamW8bit"),
    "paged_adamw": _Recipe("bitsandbytes.optim", "PagedAdamW"),
    "paged_adamw8bit": _Recipe("bitsandbytes.optim", "PagedAdamW8bit"),
    "lion": _Recipe("bitsandbytes.optim", "Lion", betas=(0.9, 0.99), has_epsilon=False),
    "lion8bit": _Recipe("bitsandbytes.optim", "Lion8bit", betas=(0.9, 0.99), has_epsilon=False),
    "paged_lion8bit": _Recipe(
        "bitsandbytes.optim", "PagedLion8bit", betas=(0.9, 0.99), has_epsilon=False
    ),
    "ademamix8bit": _Recipe("bitsandbytes.optim", "AdEMAMix8bit", betas=(0.9, 0.999, 0.9999)),
    # Bias correction and the warm-up safeguard are what diffusion models are trained with.
    "prodigy": _Recipe(
        "prodigyopt", "Prodigy", extra={"use_bias_correction": True, "safeguard_warmup": True}
    ),
    "dadapt_adam": _Recipe(
        "dadaptation", "DAdaptAdam", extra={"decouple": True, "use_bias_correction": True}
    ),
    "dadapt_lion": _Recipe("dadaptation", "DAdaptLion", betas=(0.9, 0.99), has_epsilon=False),
    "adamw_schedulefree": _Recipe("schedulefree", "AdamWScheduleFree", extra=_FREE),
    "radam_schedulefree": _Recipe("schedulefree", "RAdamScheduleFree"),
    "sgd_schedulefree": _Recipe(
        "schedulefree",
        "SGDScheduleFree",
        betas=(0.9,),
        has_epsilon=False,
        momentum="momentum",
        extra=_FREE,
    ),
}

# Arguments that have an option of their own, or that the engine decides.
_RESERVED = {"params", "lr", "betas", "eps", "weight_decay", "fused", "foreach", "fsdp_in_use"}


def build_optimizer(options: OptimOptions, groups: Sequence[ParamGroup]) -> Optimizer:
    """The optimizer that ``options.optimizer`` names, with one torch group per ``ParamGroup``.

    Each torch group carries ``name`` and ``initial_lr``.

    Raises:
        UserError: the library is not installed (named); the optimizer does not take an option
            or argument that is set; a value that it refuses.
    """
    kind = kind_of(options.optimizer)
    recipe = _RECIPES[kind.name]
    build = _find(kind, recipe)
    arguments = _arguments(options, kind, recipe, build)
    if kind.name in ("adamw", "adam") and _fused_works(groups):
        arguments["fused"] = True
    rate = max((group.learning_rate for group in groups), default=0.0)
    described = [
        {
            "params": list(group.parameters),
            "lr": group.learning_rate,
            "weight_decay": (
                options.weight_decay if group.weight_decay is None else group.weight_decay
            ),
            "name": group.name,
            "initial_lr": group.learning_rate,
        }
        for group in groups
    ]
    try:
        # Some of these libraries print to standard output, which is not ours to fill.
        with contextlib.redirect_stdout(io.StringIO()):
            optimizer: Optimizer = build(
                described, lr=rate, weight_decay=options.weight_decay, **arguments
            )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{kind.name} refuses its arguments: {error}", where="optim.arguments"
        ) from error
    if kind.averages:
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _find(kind: Kind, recipe: _Recipe) -> Callable[..., Optimizer]:
    try:
        module = importlib.import_module(recipe.module)
        found: Callable[..., Optimizer] = getattr(module, recipe.name)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # A library that is there but broken (a missing CUDA file) raises OSError and others.
        missing = isinstance(error, ModuleNotFoundError)
        what = "which is not installed" if missing else f"which does not work here ({error})"
        raise UserError(
            f"the optimizer {kind.name} needs the package {kind.package}, {what}",
            where="optim.optimizer",
            do=f"Install it into the engine's environment (pip install {kind.package}), "
            "or choose adamw.",
        ) from error
    return found


def _arguments(
    options: OptimOptions, kind: Kind, recipe: _Recipe, build: Callable[..., Optimizer]
) -> dict[str, Any]:
    """Keyword arguments but for ``params``, ``lr`` and ``weight_decay``."""
    arguments = dict(recipe.extra)
    given = [options.beta1, options.beta2]
    if recipe.momentum:
        first = options.beta1 if options.beta1 is not None else next(iter(recipe.betas), None)
        arguments[recipe.momentum] = first
        _refuse_if_set(kind, "beta2", options.beta2)
    else:
        chosen = [own if mine is None else mine for mine, own in zip(given, recipe.betas)]  # noqa: B905
        arguments["betas"] = (*chosen, *recipe.betas[2:])
    if recipe.has_epsilon:
        arguments["eps"] = 1e-8 if options.epsilon is None else options.epsilon
    else:
        _refuse_if_set(kind, "epsilon", options.epsilon)
    if kind.averages and "warmup_steps" in inspect.signature(build).parameters:
        arguments["warmup_steps"] = options.warmup_steps
    arguments.update(_further(options, kind, build))
    return arguments


def _refuse_if_set(kind: Kind, name: str, value: float | None) -> None:
    if value is not None:
        raise UserError(f"{kind.name} has no {name}", where=f"optim.{name}", do="Leave it empty.")


def _further(options: OptimOptions, kind: Kind, build: Callable[..., Optimizer]) -> dict[str, Any]:
    """``options.arguments``, parsed and checked against the optimizer's signature."""
    accepted = set(inspect.signature(build).parameters) - _RESERVED - {"kwargs"}
    parsed = {}
    for name, text in options.arguments.items():
        if name not in accepted:
            near = difflib.get_close_matches(name, accepted, n=1)
            raise UserError(
                f"{kind.name} has no argument {name!r}",
                where="optim.arguments",
                do=f"Did you mean {near[0]!r}?"
                if near
                else f"It has {', '.join(sorted(accepted))}.",
            )
        parsed[name] = _value(str(text))
    return parsed


def _value(text: str) -> Any:
    """A number, truth value, ``None`` or list out of its text; any other text as it is."""
    words: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        value = json.loads(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text
    return tuple(value) if isinstance(value, list) else value


def _fused_works(groups: Sequence[ParamGroup]) -> bool:
    """Whether torch has its fused kernel for all of these parameters."""
    parameters = [p for group in groups for p in group.parameters]
    return bool(parameters) and all(
        p.device.type in ("cpu", "cuda", "xpu") and torch.is_floating_point(p) for p in parameters
    )
