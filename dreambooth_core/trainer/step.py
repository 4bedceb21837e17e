"""One step: from a list of slots to gradients. The heart of training, and little else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_core.data.plan import CLASS, BatchPlan, Slot, groups
from dreambooth_core.errors import TrainingFailed
from dreambooth_core.families.base import Components
from dreambooth_core.objective.dreambooth import combine
from dreambooth_core.objective.objective import Objective
from dreambooth_core.randomness import seed_of
from dreambooth_core.trainer.precision import Precision
from dreambooth_core.trainer.processes import Processes
from dreambooth_core.trainer.samples import Samples


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step over all processes."""

    total: float
    instance: float
    prior: float
    """The class images' mean loss, before its weight."""
    prior_share: float
    """Their share of the total, 0 to 1."""


class StepComputer:
    """Computes the gradients of a step.

    Every random number is keyed by (seed, step, slot), and every loss is divided by the counts
    of the whole step, so neither accumulation nor the number of processes changes a result.
    """

    def __init__(
        self,
        parts: Components,
        samples: Samples,
        plan: BatchPlan,
        objective: Objective,
        precision: Precision,
        processes: Processes,
        *,
        seed: int,
        prior_weight: float,
    ) -> None:
        self.parts = parts
        self.samples = samples
        self.plan = plan
        self.objective = objective
        self.precision = precision
        self.processes = processes
        self.seed = seed
        self.prior_weight = prior_weight

    def backward(self, step: int) -> StepLoss:
        """Adds the gradients of a step to those that are there.

        Raises:
            TrainingFailed: the loss is not a number.
        """
        batches = self.plan.micro_batches(step)
        slots = [slot for batch in batches for slot in batch]
        classes = sum(slot.kind == CLASS for slot in slots)
        counts = (len(slots) - classes, classes)
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in batches:
            for group in groups(self.plan.share(batch, self.processes.rank)):
                # Dropout draws from the global generator: keyed here, so that resuming a run
                # needs no saved generator state.
                self._seed_globally(seed_of("dropout", self.seed, step, group[0].number))
                total, instance, prior = self._losses(group, step, counts)
                self.precision.scaler.scale(total).backward()
                sums += torch.stack([total.detach(), instance, prior]).double().cpu()
        total_loss, instance_loss, prior_loss = self.processes.sum(sums).tolist()
        if not torch.isfinite(sums).all():
            raise TrainingFailed(
                f"the loss of step {step + 1} is not a number",
                do="Lower the learning rate, or use bf16 or no mixed precision; "
                "resume from the latest checkpoint.",
            )
        share = self.prior_weight * prior_loss / total_loss if total_loss > 0 else 0.0
        return StepLoss(total_loss, instance_loss, prior_loss, share)

    def _seed_globally(self, seed: int) -> None:
        """Seeds torch's global generators. On the CPU its own alone: torch.manual_seed also notes
        a call for each other kind of device that is not in use, with the stack that led to it."""
        if self.precision.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def _losses(
        self, group: Sequence[Slot], step: int, counts: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total, instance and class loss of slots of one size, each a scalar."""
        latents = self.samples.latents(group, step)
        keys = [("train", self.seed, step, slot.number) for slot in group]
        noisy = self.objective.draw(latents, keys)
        inpainting = self.samples.inpainting(group, step)
        with self.precision.autocast():
            prediction = self.parts.family.predict(
                self.parts,
                noisy.noisy,
                noisy.timesteps,
                self.samples.conditioning(group, step),
                self.samples.sizes(group),
                inpainting,
            )
        losses = self.objective.losses(prediction, noisy, self.samples.masks(group))
        device = losses.device
        losses = losses * torch.tensor([float(slot.counts) for slot in group], device=device)
        is_class = torch.tensor([slot.kind == CLASS for slot in group], device=device)
        total, shares = combine(losses, is_class, self.prior_weight, counts)
        return total, shares.instance, shares.prior
