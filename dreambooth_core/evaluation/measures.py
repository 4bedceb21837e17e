"""The measures of DreamBooth's evaluation (Ruiz et al. 2022, section 4.2), with their intervals.

============  ==================================================================================
subject       subject fidelity by what tells individuals apart (DINO): generated against real
clip_i        the same by CLIP's image embedding
style         the same again, of a style: what CLIP sees in images of other contents
clip_t        prompt fidelity: generated against what the prompt describes, by CLIP
preservation  the class prompt's images against the real subject (PRES): should not rise
diversity     how unlike each other the class prompt's images are (DIV): should not fall
============  ==================================================================================

An interval holds the middle 95% of what drawing the images anew, with replacement, gives
(Efron 1979). Numbers are drawn from a fixed key: the same images give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.evaluation.encoders import Encoders
from dreambooth_core.evaluation.protocol import Task
from dreambooth_core.randomness import generator

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Measure:
    """A number, and where it probably lies."""

    value: float
    low: float
    high: float
    images: int
    """How many were judged."""


def measure(
    encoders: Encoders,
    tasks: Sequence[Task],
    images: Sequence[Image.Image],
    real: Sequence[Image.Image],
    *,
    style: bool = False,
) -> dict[str, Measure]:
    """All measures of one model's images.

    Args:
        tasks: what each of ``images`` was to show.
        images: the generated ones.
        real: the subject, best of all images that were not trained on.
        style: whether a style was learned: then no individual is looked for.

    Raises:
        UserError: an encoder is damaged.
    """
    own = [i for i, task in enumerate(tasks) if not task.of_class]
    others = [i for i, task in enumerate(tasks) if task.of_class]
    identities = encoders.identities(images)
    drawn = encoders.images([images[i] for i in own])
    truth = encoders.identities(real)
    shown = encoders.images(real)
    texts = encoders.captions([tasks[i].described for i in own])
    if not all(bool(each.isfinite().all()) for each in (identities, drawn, truth, shown, texts)):
        raise UserError(
            "what looks at the images answers with no numbers: an encoder is damaged",
            do="Name others with --clip and --dino.",
        )
    like = interval((drawn @ shown.T).mean(1), _mean)
    if style:
        found = {"style": like}
    else:
        found = {
            "subject": interval((identities[own] @ truth.T).mean(1), _mean),
            "clip_i": like,
        }
    found["clip_t"] = interval((drawn * texts).sum(1), _mean)
    if others:
        classes = identities[others]
        found["preservation"] = interval((classes @ truth.T).mean(1), _mean)
        found["diversity"] = interval(1.0 - classes @ classes.T, _between)
    return found


def interval(values: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Measure:
    """A statistic of ``values`` ``[n, …]`` and its interval; ``of`` takes rows by their indices."""
    count = values.shape[0]
    values = values.double().cpu()
    drawn = torch.randint(count, (DRAWS, count), generator=generator("bootstrap", count))
    spread = torch.stack([of(values, rows) for rows in drawn])
    spread = spread[spread.isfinite()]
    value = of(values, torch.arange(count))
    if not bool(value.isfinite()):  # one image alone has nothing to differ from
        return Measure(0.0, 0.0, 0.0, count)
    edges = torch.quantile(spread, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2]).double())
    return Measure(
        round(float(value), 4), round(float(edges[0]), 4), round(float(edges[1]), 4), count
    )


def _mean(values: Tensor, rows: Tensor) -> Tensor:
    return values[rows].mean()


def _between(distances: Tensor, rows: Tensor) -> Tensor:
    """The mean over pairs of different images; one drawn twice is no pair."""
    chosen = distances[rows][:, rows]
    pairs = rows[:, None] != rows[None, :]
    return chosen[pairs].mean()
