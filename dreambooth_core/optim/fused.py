"""The optimizer step inside the backward pass.

As soon as a weight's gradient is complete the weight takes its step and the gradient is freed,
so at no time do all gradients exist. Lv et al. 2023, "Full Parameter Fine-tuning for Large
Language Models with Limited Resources" (arXiv:2306.09782).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer


@contextmanager
def only(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> Iterator[None]:
    """Inside, ``optimizer`` sees one parameter of one of its groups and nothing else."""
    groups, parameters = optimizer.param_groups, group["params"]
    optimizer.param_groups, group["params"] = [group], [parameter]
    try:
        yield
    finally:
        optimizer.param_groups, group["params"] = groups, parameters


def step_in_backward(
    optimizer: Optimizer, step: Callable[[dict[str, Any], nn.Parameter], None]
) -> None:
    """From now on each parameter takes its step as soon as its gradient is there.

    Args:
        optimizer: one whose kind is ``per_parameter``.
        step: takes a torch group and a parameter with its gradient, and makes its step.
    """

    def take(group: dict[str, Any], parameter: nn.Parameter) -> None:
        step(group, parameter)
        parameter.grad = None

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(partial(take, group))
