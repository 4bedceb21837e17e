"""Images and scores before and after training: what ``dreambooth demo`` shows."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from dreambooth_core.bases.embedded import ASSETS
from dreambooth_core.bases.locate import locate
from dreambooth_core.evaluation.grid import Row, sheet
from dreambooth_core.evaluation.scores import Scorer, agreement, diversity, load_scorer, similarity
from dreambooth_core.families.components import Components
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.options import TrainConfig

FOLDER = ASSETS / "demo"
"""What is taught, and how each embedded base learns it: a file with the base's name."""

BACKGROUNDS = ("night", "purple", "grass", "brick", "sunset")
"""Where the subject is put; the base knows these words, and three are in none of its images."""

CHOICES = ("white", "gray", "sky", "grass", "sand", "brick", "night", "sunset", "purple")
"""The backgrounds among which an image's own is told."""

LABEL_WIDTH = 22
"""Characters in a line of the sheet's labels."""

SUBJECT_SEEDS = (11, 12)
CLASS_SEEDS = tuple(range(21, 29))


@dataclass(frozen=True)
class Gallery:
    """Images of one model, always from the same prompts and seeds."""

    subject: list[Image.Image]
    """For each background and seed, seeds first."""
    of_class: list[Image.Image]
    """The class prompt, one for each seed."""


class Demonstration:
    """Draws and scores with a base, with and without an adapter."""

    def __init__(self, config: TrainConfig, parts: Components) -> None:
        self.config = config
        self.parts = parts
        for model in parts.models.values():
            model.float()  # it may be kept in half, in which a CPU is slow
        concept = config.concepts[0]
        self.instance_prompt = concept.instance_prompt
        self.class_prompt = concept.class_prompt
        folder = Path(concept.images)
        self.subject = [Image.open(f).convert("RGB") for f in sorted(folder.glob("*.png"))]
        self.scorer: Scorer = load_scorer(locate(config.base.model))
        watch = config.validation
        self.settings = SamplingSettings(
            steps=int(parts.recommended.get("steps", 25)),
            guidance=watch.guidance_scale,
            scheduler=watch.scheduler,
            width=config.data.resolution,
            height=config.data.resolution,
            batch_size=10,
        )

    def draw(self, adapter: Path | None = None) -> Gallery:
        """The gallery of the base, or of the base with an adapter as it was saved."""
        stack = AdapterStack(self.parts.models)
        if adapter is not None:
            stack.load("trained", read_adapter(adapter))
        scenes = [f"{self.instance_prompt} on a {name} background" for name in BACKGROUNDS]
        prompts = [prompt for prompt in scenes for _ in SUBJECT_SEEDS]
        seeds = [*SUBJECT_SEEDS] * len(BACKGROUNDS)
        classes = [self.class_prompt] * len(CLASS_SEEDS)
        try:
            images = generate(
                self.parts, [*prompts, *classes], [*seeds, *CLASS_SEEDS], self.settings
            )
        finally:
            stack.clear()
        return Gallery(images[: len(prompts)], images[len(prompts) :])

    def score(self, gallery: Gallery) -> dict[str, float]:
        """The gallery's scores: likeness of the subject's prompt to the training images, and of
        the class prompt, which should not rise (-1 to 1); the share of the subject's images with
        the background that the prompt names; how different the class prompt's images are from each
        other."""
        real = self.scorer.identities(self.subject)
        subject = self.scorer.identities(gallery.subject)
        of_class = self.scorer.identities(gallery.of_class)
        captions = self.scorer.captions([f"a star on a {name} background" for name in CHOICES])
        right = [CHOICES.index(name) for name in BACKGROUNDS for _ in SUBJECT_SEEDS]
        found = {
            "subject_similarity": similarity(subject, real),
            "class_similarity": similarity(of_class, real),
            "prompt_fidelity": agreement(self.scorer.images(gallery.subject), captions, right),
            "class_diversity": diversity(of_class),
        }
        return {name: round(value, 4) for name, value in found.items()}

    def grid(self, before: Gallery, after: Gallery) -> Image.Image:
        """The images trained on, and both galleries below each other."""
        first = slice(0, None, len(SUBJECT_SEEDS))
        subject = textwrap.fill(f'"{self.instance_prompt} on a … background"', LABEL_WIDTH)
        of_class = textwrap.fill(f'"{self.class_prompt}"', LABEL_WIDTH)
        count = len(BACKGROUNDS)
        return sheet(
            [
                Row("the five\nimages", self.subject[:count]),
                Row(
                    f"{subject}\n\nbefore",
                    before.subject[first],
                    columns=[f"… {name}" for name in BACKGROUNDS],
                ),
                Row("after", after.subject[first]),
                Row(f"{of_class}\n\nbefore", before.of_class[:count], columns=[""]),
                Row("after", after.of_class[:count]),
            ],
            title="dreambooth demo: the same prompts and seeds before and after training",
        )
