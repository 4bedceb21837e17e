"""What the models answered before they were trained: to preserve it, or to compare with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor

from dreambooth_core.data.cache import RECIPE, Cache, hashed
from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import CLASS, Slot
from dreambooth_core.devices import send
from dreambooth_core.methods.base import Method
from dreambooth_core.objective.objective import NoisySample, Objective, preference
from dreambooth_core.trainer.samples import Samples


@dataclass
class Answers(Cache[Slot]):
    """What the base answers to class slots, asked before it is trained and changes.

    ``encode`` takes a slot and gives ``[C, H, W]``, fp32, on the CPU: each is asked alone.
    """

    _: KW_ONLY
    items: Items
    """What the slots name."""
    things = "answers of the base"

    def key(self, item: Slot) -> str:
        about = (self.items.image(item).pixels_hash, item.view.key, self.items.caption(item))
        parts = (RECIPE, self.fingerprint, *about, *item.key(0))
        return hashed("\0".join(str(part) for part in ("answers", *parts)))

    def _encoded(self, items: list[Slot]) -> list[Tensor]:
        return [self.encode(slot) for slot in items]


def answer_of(samples: Samples, objective: Objective, slot: Slot) -> Tensor:
    """What the models answer to a slot that is kept, ``[C, H, W]``, fp32, on the CPU."""
    latents = samples.latents([slot], 0)
    noisy = objective.draw(latents, [("train", samples.seed, *slot.key(0))])
    answer = samples.predict(noisy, [slot], 0, samples.inpainting([slot], 0))
    return answer[0].float().cpu()


@dataclass
class References:
    """Asks the models as they were."""

    method: Method
    """Puts them back to what they were, for as long as they are asked."""
    samples: Samples
    """Asks them."""
    objective: Objective
    answers: Answers | None
    """Of the base, where it cannot be asked any more."""

    def preserved(
        self, noisy: NoisySample, group: Sequence[Slot], step: int, inpainting: Tensor | None
    ) -> NoisySample:
        """The sample with what the base itself answers as the target of its class slots, which
        stand at its end."""
        first = sum(slot.kind != CLASS for slot in group)
        if first == len(group):
            return noisy
        if self.answers is not None:
            kept = torch.stack([self.answers.value(slot) for slot in group[first:]])
            answers = send(kept, noisy.target.device)
            return replace(noisy, target=torch.cat([noisy.target[:first], answers]))
        with torch.no_grad(), self.method.as_base():
            answer = self._answer(slice(first, None), noisy, group, step, inpainting)
        return replace(noisy, target=torch.cat([noisy.target[:first], answer.to(noisy.target)]))

    def _answer(
        self,
        which: slice,
        noisy: NoisySample,
        group: Sequence[Slot],
        step: int,
        inpainting: Tensor | None,
    ) -> Tensor:
        masked = None if inpainting is None else inpainting[which]
        return self.samples.predict(noisy.part(which), group[which], step, masked)

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
        with torch.no_grad(), self.method.as_remembered():
            answer = self._answer(both, noisy, group, step, inpainting)
        before = self.objective.losses(answer, noisy.part(both), self.samples.masks(group[both]))
        found = preference(
            losses[both].unflatten(0, (2, pairs)),
            before.unflatten(0, (2, pairs)),
            self.objective.options.dpo_beta,
        )
        return torch.cat([found, torch.zeros_like(found), losses[2 * pairs :]])
