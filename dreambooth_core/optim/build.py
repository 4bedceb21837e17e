"""Builds an optimizer by name, with the arguments that it really takes."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dreambooth_core.config.suggest import advice
from dreambooth_core.errors import UserError
from dreambooth_core.optim.options import OptimOptions
from dreambooth_core.optim.table import OPTIMIZERS, OptimizerSpec


@dataclass(frozen=True)
class ParamGroup:
    """Parameters with a learning rate of their own."""

    name: str
    """Where the parameters belong, for logs: ``unet``, ``text_encoder``, ``embedding`` …"""
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float | None = None
    """In place of the options'; 0 for learned tokens."""


ALWAYS_THERE = ("torch", "transformers")
"""Packages without which nothing runs."""

# Arguments that have an option of their own, or that the engine decides.
_RESERVED = {"params", "lr", "betas", "eps", "weight_decay", "fused", "foreach", "fsdp_in_use"}


def build_optimizer(options: OptimOptions, groups: Sequence[ParamGroup]) -> Optimizer:
    """The optimizer that ``options.optimizer`` names, with one torch group per ``ParamGroup``.

    Each torch group carries ``name`` and ``initial_lr``.

    Raises:
        UserError: the library is not installed (named); the optimizer does not take an option
            or argument that is set; a value that it refuses.
    """
    spec = OPTIMIZERS[options.optimizer]
    build = _find(spec)
    arguments = _own_arguments(options, spec)
    if spec.averages and "warmup_steps" in inspect.signature(build).parameters:
        arguments["warmup_steps"] = options.lr_warmup_steps
    arguments |= _further(options, spec, build)
    if spec.fused and _fused_works(groups):
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
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(
            f"{spec.name} refuses its arguments: {error}", where="optim.optimizer_args"
        ) from error
    if spec.averages:
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def try_out(
    options: OptimOptions, groups: Sequence[ParamGroup], device: torch.device | None = None
) -> None:
    """Refuses what :func:`build_optimizer` would, and what would fail at the first step.

    Args:
        options: of the optimizer.
        groups: those of the run; of their parameters nothing is asked.
        device: where the run will be; None where this process does not see it.

    Raises:
        UserError: as :func:`build_optimizer`.
    """
    spec = OPTIMIZERS[options.optimizer]
    _own_arguments(options, spec)
    if spec.package in ALWAYS_THERE and not options.optimizer_args:
        return  # nothing can be wrong, and the libraries take seconds to read
    small = [nn.Parameter(torch.ones(2, 2, device=device)) for _ in groups]
    described = [replace(g, parameters=[p]) for g, p in zip(groups, small, strict=True)]
    optimizer = build_optimizer(options, described)
    if device is None:
        return
    for parameter in small:
        parameter.grad = torch.full_like(parameter, 0.1)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    except Exception as error:
        # These libraries check little: a wrong argument can raise anything.
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{spec.name} fails at a first step: {reason}",
            where="optim.optimizer_args" if options.optimizer_args else "optim.optimizer",
            do="Leave optim.optimizer_args empty, or choose adamw.",
        ) from error


def _find(spec: OptimizerSpec) -> Callable[..., Optimizer]:
    module, _, name = spec.target.partition(":")
    try:
        found: Callable[..., Optimizer] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # A library that is there but broken (a missing CUDA file) raises OSError and others.
        missing = isinstance(error, ModuleNotFoundError)
        what = "which is not installed" if missing else f"which does not work here ({error})"
        raise UserError(
            f"the optimizer {spec.name} needs the package {spec.package}, {what}",
            where="optim.optimizer",
            do=f"Install it into the engine's environment (pip install {spec.package}), "
            "or choose adamw.",
        ) from error
    return found


def _own_arguments(options: OptimOptions, spec: OptimizerSpec) -> dict[str, Any]:
    """Keyword arguments that have an option here, but for ``lr`` and ``weight_decay``."""
    arguments = dict(spec.arguments)
    given = [options.beta1, options.beta2]
    if spec.momentum:
        first = options.beta1 if options.beta1 is not None else next(iter(spec.betas), None)
        arguments[spec.momentum] = first
        _refuse_if_set(spec, "beta2", options.beta2)
    elif not spec.betas:
        _refuse_if_set(spec, "beta1", options.beta1)
        _refuse_if_set(spec, "beta2", options.beta2)
    else:
        chosen = [own if mine is None else mine for mine, own in zip(given, spec.betas)]  # noqa: B905
        arguments["betas"] = (*chosen, *spec.betas[2:])
    if spec.has_epsilon:
        arguments["eps"] = 1e-8 if options.epsilon is None else options.epsilon
    else:
        _refuse_if_set(spec, "epsilon", options.epsilon)
    return arguments


def _refuse_if_set(spec: OptimizerSpec, name: str, value: float | None) -> None:
    if value is not None:
        raise UserError(f"{spec.name} has no {name}", where=f"optim.{name}", do="Leave it empty.")


def _further(
    options: OptimOptions, spec: OptimizerSpec, build: Callable[..., Optimizer]
) -> dict[str, Any]:
    """``options.optimizer_args``, parsed and checked against the optimizer's signature."""
    parameters = inspect.signature(build).parameters
    accepted = set(parameters) - _RESERVED - {"kwargs"}
    parsed = {}
    for name, text in options.optimizer_args.items():
        if name not in accepted:
            what, do = f"{spec.name} has no argument {name!r}", advice(name, sorted(accepted))
            raise UserError(what, where="optim.optimizer_args", do=do)
        parsed[name] = _value(str(text))
        _refuse_other_types(spec.name, name, parsed[name], parameters[name].default)
    return parsed


def _refuse_other_types(optimizer: str, name: str, value: Any, default: Any) -> None:
    """Raises ``UserError`` for a value that is not of the default's type: these libraries take
    any text for true, and NaN for a number."""
    right = True
    if isinstance(default, bool):
        right, kind = isinstance(value, bool), "true or false"
    elif isinstance(default, (int, float)):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        right, kind = number and math.isfinite(value), "a number"
    if not right:
        raise UserError(
            f"{optimizer}'s {name} is {value!r}, not {kind}", where="optim.optimizer_args"
        )


def _value(text: str) -> Any:
    """A number, truth value, ``None`` or list out of its text; any other text as it is."""
    words: dict[str, Any] = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
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
