"""What the models answered before they were trained: to preserve it, or to compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dreambooth_core.data.plan import CLASS, Slot
from dreambooth_core.methods.base import Method
from dreambooth_core.objective.objective import NoisySample, Objective
from dreambooth_core.objective.preference import preference
from dreambooth_core.trainer.samples import Samples


class References:
    """Asks the models as they were.

    Args:
        method: puts them back to what they were, for as long as they are asked.
        samples: asks them.
        objective: of the run.
    """

    def __init__(self, method: Method, samples: Samples, objective: Objective) -> None:
        self.method, self.samples, self.objective = method, samples, objective

    def preserved(
        self, noisy: NoisySample, group: Sequence[Slot], step: int, inpainting: Tensor | None
    ) -> NoisySample:
        """The sample with what the base itself answers as the target of its class slots, which
        stand at its end."""
        first = sum(slot.kind != CLASS for slot in group)
        if first == len(group):
            return noisy
        masked = None if inpainting is None else inpainting[first:]
        with torch.no_grad(), self.method.as_base():
            answer = self.samples.predict(
                noisy.noisy[first:],
                noisy.timesteps[first:],
                group[first:],
                step,
                inpainting=masked,
            )
        return replace(noisy, target=torch.cat([noisy.target[:first], answer.to(noisy.target)]))

    def compared(
        self,
        losses: Tensor,
        noisy: NoisySample,
        group: Sequence[Slot],
        pairs: int,
        step: int,
        inpainting: Tensor | None,
    ) -> Tensor:
        """The losses ``[B]`` with that of each pair in the place of its good image's, and 0 in the
        place of its bad one's. Good and bad images stand at the front, ``pairs`` of each."""
        both = slice(0, 2 * pairs)
        masked = None if inpainting is None else inpainting[both]
        with torch.no_grad(), self.method.as_remembered():
            answer = self.samples.predict(
                noisy.noisy[both], noisy.timesteps[both], group[both], step, inpainting=masked
            )
        before = self.objective.losses(answer, noisy.part(both), self.samples.masks(group[both]))
        found = preference(
            losses[both].unflatten(0, (2, pairs)),
            before.unflatten(0, (2, pairs)),
            self.objective.options.dpo_beta,
        )
        return torch.cat([found, torch.zeros_like(found), losses[2 * pairs :]])
