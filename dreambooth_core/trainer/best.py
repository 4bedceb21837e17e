"""Which step is best: the loss on images that are held out, always on the same noise.

The training loss says little: each step has other noise, and it keeps falling while a subject is
learned by heart. Here each image that was never trained on meets the same noise at the same
timesteps, keyed by image and place alone, so that steps and runs can be compared.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import Slot, groups
from dreambooth_core.devices import Precision
from dreambooth_core.disk import copy_file, replacing_folder
from dreambooth_core.jobs import Event
from dreambooth_core.objective.objective import Objective
from dreambooth_core.trainer.samples import Samples

POSITIONS = tuple((place + 0.5) / 8 for place in range(8))
"""Where in the distribution of timesteps that is trained on each image is asked for."""
MEASURED = "measured"
"""The kind of event that tells a measurement."""


@dataclass
class Record:
    """What was measured so far: a step is better if its score is higher, or, where images are not
    scored, if its held-out loss is lower."""

    losses: dict[int, float] = field(default_factory=dict)
    """Held-out loss by step."""
    scores: dict[int, float] = field(default_factory=dict)
    """Of images, by step."""

    @classmethod
    def of(cls, events: Sequence[Event], last: int) -> Record:
        """What an interrupted run had measured up to the step ``last``."""
        told = [e for e in events if e["kind"] == MEASURED and type(e.get("step")) is int]
        told = [e for e in told if e["step"] <= last]
        return cls(_numbers(told, "held_out_loss"), _numbers(told, "score"))

    @property
    def _costs(self) -> dict[int, float]:
        return {step: -score for step, score in self.scores.items()} or self.losses

    @property
    def best(self) -> int | None:
        """The first of the best steps; None before anything was measured."""
        costs = self._costs
        return min(costs, key=lambda step: (costs[step], step), default=None)

    def worse(self) -> int:
        """How many measurements in a row, the last one included, were no better than the best."""
        best = self.best
        return 0 if best is None else sum(step > best for step in self._costs)


def _numbers(events: Sequence[Event], name: str) -> dict[int, float]:
    """A measure by step; what a damaged file has in its place is left out."""
    found = {e["step"]: e[name] for e in events if isinstance(e.get(name), int | float)}
    return {step: float(value) for step, value in found.items() if math.isfinite(value)}


class HeldOut:
    """The loss of the present weights on images that are held out.

    Args:
        items: those images.
        samples: latents and conditioning of ``items``.
        batch_size: how many are passed at once.
    """

    def __init__(
        self,
        items: Items,
        samples: Samples,
        objective: Objective,
        precision: Precision,
        batch_size: int,
    ) -> None:
        plan = items.plan(batch_size=1)
        slots = {slot.picture: slot for n in range(plan.steps_per_epoch) for slot in plan.slots(n)}
        self.slots = [replace(slots[i], number=2 * i) for i in sorted(slots)]
        self.samples = samples
        self.objective = objective
        self.precision = precision
        self.batch_size = batch_size

    @torch.no_grad()
    def loss(self) -> float:
        """The mean over images and timesteps, as training weighs them."""
        models = self.samples.parts.models.values()
        training = [model for model in models if model.training]
        for model in training:
            model.eval()
        try:
            found = [
                self._losses(pairs[at : at + self.batch_size])
                for pairs in self._pairs()
                for at in range(0, len(pairs), self.batch_size)
            ]
        finally:
            for model in training:
                model.train()
        return float(torch.cat(found).mean())

    def _pairs(self) -> list[list[tuple[Slot, int]]]:
        """Every image at every place, in parts of one size."""
        return [
            [(slot, place) for slot in group for place in range(len(POSITIONS))]
            for group in groups(self.slots)
        ]

    def _losses(self, pairs: Sequence[tuple[Slot, int]]) -> torch.Tensor:
        slots = [slot for slot, _ in pairs]
        latents = self.samples.latents(slots, 0)
        noisy = self.objective.draw(
            latents,
            [("held out", slot.picture, place) for slot, place in pairs],
            self.objective.timesteps([POSITIONS[place] for _, place in pairs], latents.shape),
        )
        family, parts = self.samples.parts.family, self.samples.parts
        with self.precision.autocast():
            prediction = family.predict(
                parts,
                noisy.noisy,
                noisy.timesteps,
                self.samples.conditioning(slots, 0),
                self.samples.sizes(slots),
                self.samples.inpainting(slots, 0),
            )
        return self.objective.losses(prediction, noisy, self.samples.masks(slots))


def keep(result: Path, stem: str) -> Path:
    """Copies a result to ``stem`` beside it, whole or not at all.

    Raises:
        SaveFailed: it could not be written.
    """
    target = result.with_name(f"{stem}{'' if result.is_dir() else result.suffix}")
    if result.is_dir():
        with replacing_folder(target) as part:
            shutil.copytree(result, part, dirs_exist_ok=True)
    else:
        copy_file(result, target, link=True)
    return target
