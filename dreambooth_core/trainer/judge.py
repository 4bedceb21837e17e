"""Which step is best by images: a few are drawn at each save, and encoders compare them.

The rule: a step's score is its likeness to the real subject, less what its images follow their
prompts worse than the base's do, and less what the class has moved towards the subject, each beyond
a tolerance. So the subject counts as long as prompt and class stay near the base's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageOps

from dreambooth_core.bases.locate import locate
from dreambooth_core.data.images import load_rgb
from dreambooth_core.data.items import Items
from dreambooth_core.devices import Precision
from dreambooth_core.evaluation.encoders import Encoders, load_encoders, own_folder
from dreambooth_core.evaluation.protocol import Task, prompts_for, tasks
from dreambooth_core.evaluation.scores import similarity
from dreambooth_core.families.base import Components
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.validation import sampling_settings

PROMPTS = 4
"""Of the protocol, spread over it; each is drawn twice, and the class eight times."""
TOLERANCE = 0.05
"""Of a cosine: what prompt and class may lose before it counts against the subject."""


@dataclass(frozen=True)
class Look:
    """What the images of one step show, each a mean cosine."""

    likeness: float
    """Of the subject's images to the real ones."""
    prompt: float
    """Of the subject's images to what their prompts say."""
    drift: float
    """Of the class prompt's images to the real subject; 0 without a class prompt."""

    def score(self, base: Look) -> float:
        """The rule; higher is better."""
        strayed = max(0.0, base.prompt - self.prompt - TOLERANCE)
        taken = max(0.0, self.drift - base.drift - TOLERANCE)
        return self.likeness - strayed - taken

    def numbers(self) -> dict[str, float]:
        """For events."""
        return {"likeness": self.likeness, "prompt": self.prompt, "drift": self.drift}


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
        chosen = tuple(prompts[i * len(prompts) // PROMPTS] for i in range(PROMPTS))
        wanted = tasks(chosen, about.instance_prompt, about.class_prompt, 2, 0)
        self.parts = parts
        self.precision = precision
        self.encoders: Encoders = encoders
        self.tasks: list[Task] = wanted
        self.settings = settings_for(config, parts, items)
        self._texts = encoders.captions([t.described for t in wanted if not t.of_class])
        real = [_square(load_rgb(p, config.data.background)) for p in items.pictures]
        self._real = encoders.identities(real)
        self.base = self.look()

    def look(self, should_stop: Callable[[], bool] | None = None) -> Look:
        """The images of the present weights, judged.

        Raises:
            Stopped: ``should_stop`` said so.
        """
        prompts, seeds = [t.prompt for t in self.tasks], [t.seed for t in self.tasks]
        # The samplers of the pipeline may draw from torch's global generator.
        state = torch.get_rng_state()
        try:
            with self.precision.autocast():
                images = generate(
                    self.parts,
                    prompts,
                    seeds,
                    self.settings,
                    should_stop=should_stop,
                    device=self.precision.device,
                )
        finally:
            torch.set_rng_state(state)
        own = [i for i, t in zip(images, self.tasks, strict=True) if not t.of_class]
        others = [i for i, t in zip(images, self.tasks, strict=True) if t.of_class]
        encoders = self.encoders
        return Look(
            round(similarity(encoders.identities(own), self._real), 5),
            round(float((encoders.pictures(own) * self._texts).sum(1).mean()), 5),
            round(similarity(encoders.identities(others), self._real), 5) if others else 0.0,
        )


def settings_for(config: TrainConfig, parts: Components, items: Items) -> SamplingSettings:
    """As validation images are made."""
    return sampling_settings(config.validation, parts, items.entries[0].size)


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    return ImageOps.fit(image, (side, side))
