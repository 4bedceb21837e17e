"""Which step is best: the loss on held-out images, or images that are judged.

The training loss says little: each step has other noise, and it keeps falling while a subject is
learned by heart. So each image that was never trained on meets the same noise at the same
timesteps, keyed by image and place alone; or a few images are drawn at each save, and encoders
compare them with the real ones. Neither disturbs training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, field, replace
from math import isfinite

import torch
from PIL import ImageOps

from dreambooth_core.bases.locate import locate
from dreambooth_core.data.images import load_rgb
from dreambooth_core.data.items import Items
from dreambooth_core.data.plan import Slot, groups
from dreambooth_core.devices import Precision
from dreambooth_core.errors import Stopped
from dreambooth_core.evaluation.encoders import load_encoders, own_folder
from dreambooth_core.evaluation.protocol import prompts_for, tasks
from dreambooth_core.evaluation.scores import diversity, similarity
from dreambooth_core.families.components import Components
from dreambooth_core.jobs import Event
from dreambooth_core.objective.objective import Objective
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.placement import evaluating
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.saving import Context
from dreambooth_core.trainer.validation import drawn, sampling_settings

POSITIONS = tuple((place + 0.5) / 8 for place in range(8))
"""Where in the distribution of timesteps that is trained on each held-out image is asked for."""
MEASURED = "measured"
"""The kind of event that tells a measurement."""
TOLERANCE = 0.05
"""Of a cosine: what prompt and class may lose before it counts against the subject."""


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
    return {step: float(value) for step, value in found.items() if isfinite(value)}


class HeldOut:
    """The loss of the present weights on images that are held out.

    Args:
        samples: latents and conditioning of those images.
        batch_size: how many are passed at once.
    """

    def __init__(self, samples: Samples, objective: Objective, batch_size: int) -> None:
        plan = samples.items.plan(batch_size=1)
        slots = {slot.image: slot for n in range(plan.steps_per_epoch) for slot in plan.slots(n)}
        self.slots = [replace(slots[i], number=2 * i) for i in sorted(slots)]
        self.samples = samples
        self.objective = objective
        self.batch_size = batch_size

    @torch.no_grad()
    def loss(self) -> float:
        """The mean over images and timesteps, as training weighs them."""
        found: list[torch.Tensor] = []
        with evaluating(self.samples.parts.models.values()):
            for group in groups(self.slots):  # of one size
                pairs = [(slot, place) for slot in group for place in range(len(POSITIONS))]
                starts = range(0, len(pairs), self.batch_size)
                found += [self._losses(pairs[at : at + self.batch_size]) for at in starts]
        return float(torch.cat(found).mean())

    def _losses(self, pairs: Sequence[tuple[Slot, int]]) -> torch.Tensor:
        slots = [slot for slot, _ in pairs]
        latents = self.samples.latents(slots, 0)
        noisy = self.objective.draw(
            latents,
            [("held out", slot.image, place) for slot, place in pairs],
            self.objective.timesteps([POSITIONS[place] for _, place in pairs], latents.shape),
        )
        prediction = self.samples.predict(noisy, slots, 0, self.samples.inpainting(slots, 0))
        return self.objective.losses(prediction, noisy, self.samples.masks(slots))


@dataclass(frozen=True)
class Look:
    """What the images of one step show, each a mean cosine, or a distance by it.

    The subject counts as long as prompt and class stay near the base's: a step's score is its
    likeness to the real subject, less what its images follow their prompts worse than the base's
    do, and less what the class has moved towards the subject, each beyond a tolerance.
    """

    likeness: float
    """Of the subject's images to the real ones."""
    prompt: float
    """Of the subject's images to what their prompts say."""
    drift: float
    """Of the class prompt's images to the real subject; 0 without a class prompt."""
    diversity: float = 0.0
    """How unlike each other the class prompt's images are, a mean cosine distance; told beside the
    score, which it is no part of."""

    def score(self, base: Look) -> float:
        """The rule; higher is better."""
        strayed = max(0.0, base.prompt - self.prompt - TOLERANCE)
        taken = max(0.0, self.drift - base.drift - TOLERANCE)
        return self.likeness - strayed - taken


class Judge:
    """Draws with the present weights, always from the same seeds, and compares.

    Args:
        items: images of the subject, best of all such as are held out.

    Raises:
        UserError: the encoders are not on this machine.
    """

    def __init__(
        self, config: TrainConfig, parts: Components, precision: Precision, items: Items
    ) -> None:
        base = config.base
        place = locate(base.model, revision=base.revision, variant=base.variant)
        encoders = load_encoders(place, precision.device)
        about = items.concepts[0].options
        prompts = prompts_for("thing", own_folder(place))
        # Two images of a prompt at least, so that chance counts less; more prompts before more.
        asked = config.save.best_images
        count = min(len(prompts), asked // 2)
        chosen = tuple(prompts[i * len(prompts) // count] for i in range(count))
        wanted = tasks(chosen, about.instance_prompt, about.class_prompt, asked // count, 0)
        self.parts = parts
        self.precision = precision
        self.encoders = encoders
        self.tasks = wanted
        self.settings = sampling_settings(config.validation, parts, items.entries[0].size)
        self._texts = encoders.captions([t.described for t in wanted if not t.of_class])
        real = [load_rgb(p, config.data.background) for p in items.images]
        self._real = encoders.identities([ImageOps.fit(r, (min(r.size),) * 2) for r in real])
        self.base = self.look()

    def look(self, should_stop: Callable[[], bool] | None = None) -> Look:
        """The images of the present weights, judged.

        Raises:
            Stopped: ``should_stop`` said so.
        """
        prompts, seeds = [t.prompt for t in self.tasks], [t.seed for t in self.tasks]
        images = drawn(self.parts, self.precision, prompts, seeds, self.settings, should_stop)
        own = [i for i, t in zip(images, self.tasks, strict=True) if not t.of_class]
        others = [i for i, t in zip(images, self.tasks, strict=True) if t.of_class]
        encoders = self.encoders
        of_class = encoders.identities(others) if others else None
        return Look(
            round(similarity(encoders.identities(own), self._real), 5),
            round(float((encoders.images(own) * self._texts).sum(1).mean()), 5),
            0.0 if of_class is None else round(similarity(of_class, self._real), 5),
            0.0 if of_class is None else round(diversity(of_class), 5),
        )


@dataclass
class Best:
    """Measures which step is best, where that is asked for, and remembers it."""

    run: Context
    held_out: HeldOut | None
    """The loss on held-out images, if there are any."""
    judge: Judge | None
    """Of images; in the first process alone."""
    record: Record = field(default_factory=Record)
    _measured_at: int = -1

    def measure(
        self, step: int, weights: AbstractContextManager[None], should_stop: Callable[[], bool]
    ) -> None:
        """Measures a step once, inside ``weights``, if there is anything to tell by. All processes
        must come here: each computes the loss, the first one draws, and its numbers count."""
        if not self.run.config.seeks_best or self._measured_at == step:
            return
        self._measured_at = step
        found, reporter = dict[str, float](), self.run.reporter
        with weights:
            if self.held_out:
                with reporter.decorative("measuring the held-out loss"):
                    found["held_out_loss"] = self.held_out.loss()
            if self.judge:
                with reporter.decorative("judging images"), suppress(Stopped):
                    look = self.judge.look(should_stop)
                    found |= {**asdict(look), "score": round(look.score(self.judge.base), 5)}
        said = self.run.processes.agree(found)
        found = {name: value for name, value in said.items() if isfinite(value)}
        if "held_out_loss" in found:
            self.record.losses[step] = found["held_out_loss"]
        if "score" in found:
            self.record.scores[step] = found["score"]
        if found:
            reporter.emit(MEASURED, step=step, **found, best=self.record.best)

    @property
    def gets_no_better(self) -> bool:
        """Whether so many measurements in a row as ``run.stop_when`` says were no better."""
        patience = self.run.config.run.stop_when
        return patience is not None and self.record.worse() >= patience

    def as_dict(self) -> dict[str, float]:
        """Which step was best, for the receipt; empty where nothing was measured."""
        best = self.record.best
        if best is None:
            return {}
        numbers = {
            "best_loss": self.record.losses.get(best),
            "best_score": self.record.scores.get(best),
        }
        return {"best_step": best, **{k: v for k, v in numbers.items() if v is not None}}
