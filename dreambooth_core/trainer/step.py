"""One step: from a list of slots to gradients. The heart of training, and little else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from dreambooth_core.data.plan import CLASS, BatchPlan, Slot, groups
from dreambooth_core.devices import Precision, send
from dreambooth_core.families.base import Components
from dreambooth_core.objective.dreambooth import combine
from dreambooth_core.objective.objective import NoisySample, Objective
from dreambooth_core.randomness import seed_of
from dreambooth_core.trainer.processes import Processes
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.sharding import no_sync, replicated


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
        models: Sequence[nn.Module],
        seed: int,
        prior_weight: float,
        as_base: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        self.parts = parts
        self.samples = samples
        self.plan = plan
        self.objective = objective
        self.precision = precision
        self.processes = processes
        self.seed = seed
        self.prior_weight = prior_weight
        self.as_base = as_base
        self._ddp = replicated(_Losses(self, models), processes)

    def backward(self, step: int) -> Tensor:
        """Adds the gradients of a step to those that are there.

        Returns:
            Losses ``[n, 3]`` of this process's groups of slots, fp32 on the device: total,
            instance and prior, each a share of the whole step's, which is their sum.
        """
        batches = self.plan.micro_batches(step)
        slots = [slot for batch in batches for slot in batch]
        classes = sum(slot.kind == CLASS for slot in slots)
        counts = (len(slots) - classes, classes)
        found = []
        forward = self._ddp or self.losses
        passes = [group for batch in batches for group in self._groups(batch)]
        for number, group in enumerate(passes, 1):
            # Dropout draws from the global generator: keyed here, so that resuming a run
            # needs no saved generator state.
            self._seed_globally(seed_of("dropout", self.seed, step, group[0].number))
            # Gradients travel once a step, with the last pass.
            with nullcontext() if number == len(passes) else no_sync(self._ddp):
                total, instance, prior = forward(group, step, counts)
                # The engines average over processes; the step's losses are shares of one sum.
                shared = total * self.processes.count if self.processes.count > 1 else total
                self.precision.scaler.scale(shared).backward()
            found.append(torch.stack([total.detach(), instance, prior])[None])
        return torch.cat(found)

    def _groups(self, batch: Sequence[Slot]) -> list[list[Slot]]:
        """This process's groups of a micro batch, as many as any has: none may pass through the
        models alone, since all bring their pieces of the weights."""
        shares = [groups(self.plan.share(batch, rank)) for rank in range(self.processes.count)]
        own = shares[self.processes.rank]
        filler = [replace(own[0][0], counts=False)]
        return own + [filler] * (max(map(len, shares)) - len(own))

    def _seed_globally(self, seed: int) -> None:
        """Seeds torch's global generators. On the CPU its own alone: torch.manual_seed also notes
        a call for each other kind of device that is not in use, with the stack that led to it."""
        if self.precision.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def losses(
        self, group: Sequence[Slot], step: int, counts: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Total, instance and class loss of slots of one size, each a scalar."""
        latents = self.samples.latents(group, step)
        keys = [("train", self.seed, step, slot.number) for slot in group]
        noisy = self.objective.draw(latents, keys)
        inpainting = self.samples.inpainting(group, step)
        noisy = self._with_the_bases_answers(noisy, group, step, inpainting)
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
        losses = losses * send(torch.tensor([float(slot.counts) for slot in group]), device)
        is_class = send(torch.tensor([slot.kind == CLASS for slot in group]), device)
        total, shares = combine(losses, is_class, self.prior_weight, counts)
        return total, shares.instance, shares.prior

    def _with_the_bases_answers(
        self, noisy: NoisySample, group: Sequence[Slot], step: int, inpainting: Tensor | None
    ) -> NoisySample:
        """The sample with what the base itself answers as the target of its class slots, which
        stand at its end; as it is where class images are trained on."""
        first = sum(slot.kind != CLASS for slot in group)
        if self.as_base is None or first == len(group):
            return noisy
        with torch.no_grad(), self.as_base(), self.precision.autocast():
            answer = self.parts.family.predict(
                self.parts,
                noisy.noisy[first:],
                noisy.timesteps[first:],
                self.samples.conditioning(group[first:], step),
                self.samples.sizes(group[first:]),
                None if inpainting is None else inpainting[first:],
            )
        target = torch.cat([noisy.target[:first], answer.to(noisy.target)])
        return replace(noisy, target=target)


class _Losses(nn.Module):
    """The losses as a module over what is trained: DDP's hooks begin at its forward pass."""

    def __init__(self, computer: StepComputer, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self.compute = computer.losses

    def forward(
        self, group: Sequence[Slot], step: int, counts: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`StepComputer.losses`."""
        return self.compute(group, step, counts)
