"""Saving and loading an optimizer's state without changing a bit of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dreambooth_core.devices import cut_like, is_sharded
from dreambooth_core.errors import UserError

# What the configuration says holds, not what a checkpoint says: it may have been changed.
_CONFIGURED = (
    "name",
    "initial_lr",
    "lr",
    "weight_decay",
    "betas",
    "eps",
    "momentum",
    "fused",
    "foreach",
    "capturable",
    "warmup_steps",
)


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """The optimizer's state: tensors, numbers, strings, lists and dicts, nothing else.

    The tensors are the live ones: write them before the next step.
    """
    state: dict[str, Any] = _plain(optimizer.state_dict())
    return state


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Takes back what :func:`optimizer_state` gave, bit for bit.

    torch and bitsandbytes cast states to the dtype of the weights when they load them, which
    would shorten fp32 states of bf16 weights; so the saved tensors are put back afterwards.

    Raises:
        UserError: the state belongs to other parameters or another optimizer.
    """
    configured = [
        {key: group[key] for key in _CONFIGURED if key in group} for group in optimizer.param_groups
    ]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in state["param_groups"] for n in group["params"]]
    states = dict(state["state"])
    for parameter, number in zip(parameters, numbers, strict=False):
        if is_sharded(parameter) and isinstance(states.get(number), dict):  # in pieces (FSDP2)
            states[number] = {k: cut_like(v, parameter) for k, v in states[number].items()}
    state = {**state, "state": states}
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the saved optimizer state does not fit ({error})",
            do="It was saved with other trained parts or another optimizer; start anew.",
        ) from error
    for group, own in zip(optimizer.param_groups, configured, strict=True):
        group.update(own)
    for parameter, number in zip(parameters, numbers, strict=True):
        saved = states.get(number)
        if isinstance(saved, dict):
            live = optimizer.state[parameter]
            for name, value in saved.items():
                live[name] = _put_back(live.get(name), value, parameter.device)


def _put_back(live: Any, saved: Any, device: torch.device) -> Any:
    if not isinstance(saved, Tensor):
        return saved
    if isinstance(live, Tensor) and live.dtype == saved.dtype and live.shape == saved.shape:
        # Keeps the place that the library chose: paged memory, the CPU for step counts.
        target = live if saved.dim() == 0 or live.device == device else live.to(device)
        with torch.no_grad():
            target.copy_(saved)
        return target
    return saved.detach().clone().to(device)


def _plain(value: Any) -> Any:
    """Containers made plain, so that ``torch.load(weights_only=True)`` reads them."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if hasattr(value, "item") and not isinstance(value, (bool, int, float, str)):
        return value.item()
    return value
