"""The numbers of each step, left on the device until somebody reads them.

To read one number of a GPU is to wait for all that it has been told to do. So losses and norms of
several steps are fetched together: when they are reported, and before anything is saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import TrainingFailed
from dreambooth_core.trainer.processes import Processes

MOST_WAITING = 50
"""Steps after which numbers are read though nobody asks: a run that diverged should soon end."""
NAMES = ("total", "instance", "prior")


@dataclass
class Window:
    """Losses since the last report, and the seconds that their steps took."""

    processes: Processes
    prior_weight: float
    scaled: bool
    """Whether gradients in fp16 are scaled: some that overflow are then expected and skipped."""
    seconds: float = 0.0
    _waiting: list[tuple[int, Tensor, Tensor | None]] = field(default_factory=list)
    """Step, counted from 1, losses ``[n, 3]`` and the gradients' norm, on the device."""
    _sums: list[list[float]] = field(default_factory=list)
    """Of each step that was read: this process's total, instance and prior loss."""
    _norm: float | None = None

    def add(self, step: int, losses: Tensor, norm: Tensor | None) -> None:
        """One more step; nothing is read."""
        self._waiting.append((step, losses, norm))

    @property
    def waiting(self) -> int:
        """Steps whose numbers are still on the device."""
        return len(self._waiting)

    def settle(self) -> None:
        """Reads what is waiting, all at once.

        Raises:
            TrainingFailed: a loss or a norm is not a number, or no gradient arrives at all.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        device = waiting[0][1].device
        flat = [losses.flatten() for _, losses, _ in waiting]
        flat += [norm.float().reshape(1).to(device) for _, _, norm in waiting if norm is not None]
        # Added in double precision here: not every device has it.
        numbers = iter(torch.cat(flat).cpu().tolist())
        for _, losses, _ in waiting:
            sums = [0.0] * len(NAMES)
            for _ in range(losses.shape[0]):
                sums = [total + next(numbers) for total in sums]
            self._sums.append(sums)
        for (step, _, norm), sums in zip(waiting, self._sums[-len(waiting) :], strict=True):
            self._norm = None if norm is None else next(numbers)
            self._check(step, sums)

    def _check(self, step: int, sums: list[float]) -> None:
        if not all(map(isfinite, sums)):
            raise TrainingFailed(
                f"the loss of step {step} is not a number",
                do="Lower the learning rate, or use bf16 or no mixed precision; "
                "resume from the latest checkpoint.",
            )
        if self._norm is None:
            return
        if step == 1 and self._norm == 0.0:
            raise TrainingFailed(
                "no gradient arrives at what is trained, so nothing would be learned",
                do="`dreambooth doctor` shows which attention kernels work here.",
            )
        if not isfinite(self._norm) and not self.scaled:
            raise TrainingFailed(
                f"the gradients of step {step} are not numbers",
                do="Lower the learning rate; resume from the latest checkpoint.",
            )

    def report(self) -> dict[str, Any]:
        """Means over the steps since the last report, of all processes, and begins anew.

        Every process must call it at the same step.
        """
        self.settle()
        count = len(self._sums)
        sums = self.processes.sum(torch.tensor(self._sums, dtype=torch.float64)).tolist()
        shares = [self.prior_weight * p / total if total > 0 else 0.0 for total, _, p in sums]
        means: dict[str, Any] = {
            "loss": sum(total for total, _, _ in sums) / count,
            "instance_loss": sum(instance for _, instance, _ in sums) / count,
            "class_loss": sum(prior for _, _, prior in sums) / count,
            "prior_share": sum(shares) / count,
            "seconds_per_step": self.seconds / count,
            "gradient_norm": self._norm,
        }
        self._sums, self._norm, self.seconds = [], None, 0.0
        return means
