"""A step asks of a device nothing that Apple's GPUs refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import config_for, folder_for, training_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Apple(TorchDispatchMode):
    """Inside, every device refuses what MPS refuses: there is no float64.

    The CPU stands for the device, so a family whose networks compute positions in float64 on the
    CPU, as those of rectified flow do, cannot be told from one that would on the device.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"MPS has no float64: {func}")
        return found


def test_it_refuses_what_mps_refuses() -> None:
    with Apple(), pytest.raises(TypeError, match="no float64"):
        torch.ones(2).double()


@pytest.mark.parametrize(
    "changes",
    [
        {"optim__ema__enabled": "true", "optim__optimizer": "adafactor"},
        {"method__kind": "full", "optim__max_grad_norm": 1.0},
    ],
    ids=["adapter", "full"],
)
def test_a_step_needs_no_float64(
    base: Path, pictures: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = config_for(base, pictures, tmp_path, **changes)
    training = training_of(config, folder_for(config))
    for step in range(2):
        with Apple():
            training.stepper.begin(step)
            losses = training.backward(step)
            training.stepper.finish(training.precision.scaler)
            if training.ema:
                training.ema.update(step + 1)
        assert losses.isfinite().all()
