"""What each rectified-flow family is proved by, on a tiny base of its kind.

``call_parity``: the denoiser gets from ``family.predict`` what the family's own diffusers pipeline
gives it, and the scheduler would get the same back. Overfitting does not see a wrong convention of
time (0.08 to 0.25); this does. ``overfit``: trained on one latent and one prompt by our objective,
sampled by diffusers, the latent comes back. ``trained_loss`` is for a comparison with a direct
computation, which each family's test writes itself: where the calls and the loss are the published
ones, overfitting follows, and is tried of one family, of the others with ``--long``.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import ClassifierFreeGuidance, DiffusionPipeline, ModularPipeline
from torch import Tensor

from dreambooth_core.families.anima import _without_torchvision
from dreambooth_core.families.base import Conditioning, SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.trainer.prepare import encode_each

PROMPT = "a photo of sks dog on the beach"
OTHER = "sks"
"""Of another length than PROMPT."""
FOUND: list[tuple[str, float]] = []
"""What the proofs of the present test found, by ``proof:family``; conftest writes it down."""


@dataclass(frozen=True)
class Bench:
    """A tiny base, as our trainer and as diffusers have it.

    Args:
        folder: in diffusers' layout.
        call: arguments of the pipeline's call: no guidance by a second prompt, the tokens.
        tokens: of a prompt that are read, so that padded prompts do not cost most of the time;
            None leaves the family's.
        inner: what the pipeline's scheduler sees, as the family's latents; None where it is what
            the pipeline returns as latents too.
        ready: makes the pipeline draw this height and width.
        told: the guidance that the denoiser is told in training.
    """

    folder: Path
    call: Mapping[str, Any] = field(default_factory=dict)
    tokens: int | None = None
    inner: Callable[[Components, Tensor, int, int], Tensor] | None = None
    ready: Callable[[Any, int, int], None] | None = None
    told: float = 1.0

    def parts(self) -> Components:
        """The base as our trainer loads it."""
        parts = load_base(BaseOptions(model=str(self.folder), guidance=self.told))
        if self.tokens is not None:
            parts.family = copy.copy(parts.family)
            parts.family.most_tokens = self.tokens  # type: ignore[attr-defined]
        return parts

    def pipeline(self) -> Any:
        """The base as diffusers loads it."""
        pipeline = DiffusionPipeline.from_pretrained(self.folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def sample(self, pipeline: Any, height: int, width: int, steps: int) -> Tensor:
        """Latents as the pipeline returns them, for PROMPT."""
        if self.ready is not None:
            self.ready(pipeline, height, width)
        made: Tensor = pipeline(
            prompt=PROMPT,
            height=height,
            width=width,
            num_inference_steps=steps,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
            **self.call,
        ).images
        return made


@dataclass(frozen=True)
class Modular(Bench):
    """A base of which diffusers has only a modular pipeline.

    Args:
        guidance: as its guider has it, with the negative prompt "red".
    """

    guidance: float = 1.0

    def pipeline(self) -> Any:
        _without_torchvision()
        made = ModularPipeline.from_pretrained(self.folder)
        made.load_components()
        made.update_components(guider=ClassifierFreeGuidance(guidance_scale=self.guidance))
        made.set_progress_bar_config(disable=True)
        return made

    def sample(self, pipeline: Any, height: int, width: int, steps: int) -> Tensor:
        made: Tensor = pipeline(
            prompt=PROMPT,
            negative_prompt="red",
            height=height,
            width=width,
            num_inference_steps=steps,
            output="latents",
            generator=torch.Generator().manual_seed(1),
        )
        return made


@dataclass(frozen=True)
class Step:
    """One step of a pipeline."""

    call: dict[str, Any]
    """What the denoiser was called with, by the names of its parameters."""
    sample: Tensor
    answer: Tensor
    """What the scheduler got, in the pipeline's shape."""
    sigma: float


def call_parity(bench: Bench, *, height: int = 64, width: int = 96, steps: int = 3) -> float:
    """Largest difference between our calls of the denoiser and the pipeline's, at every step.

    Fails with the name of what differs where a shape does, or an argument is missing.
    """
    parts, pipeline = bench.parts(), bench.pipeline()
    family = parts.family
    inner = bench.inner or family.latents_of
    conditioning = Conditioning(**encode_each(parts, [PROMPT])[0])  # as the trainer's cache has it
    sizes = [SizeInfo((height, width), (0, 0), (height, width))]
    worst = 0.0
    for step in recorded(bench, pipeline, height, width, steps):
        noisy = inner(parts, step.sample, height, width)
        assert noisy.shape[1:] == family.latent_shape(parts.configs, height, width)
        with torch.no_grad(), calls(parts.denoiser) as ours:
            answer = family.predict(parts, noisy, torch.tensor([step.sigma]), conditioning, sizes)
        theirs = inner(parts, step.answer, height, width)
        worst = max(worst, difference(ours[0], step.call, "call"))
        worst = max(worst, difference(answer, theirs, "answer"))
    return noted("call_parity", family.name, worst)


def noted(proof: str, family: str, figure: float) -> float:
    """The figure, which the table of families gets too."""
    FOUND.append((f"{proof}:{family}", figure))
    return figure


def batch_parity(bench: Bench, *, height: int = 64, width: int = 96) -> float:
    """Largest difference between a batch of unequal prompts, and each of them alone."""
    parts = bench.parts()
    family = parts.family
    sizes = [SizeInfo((height, width), (0, 0), (height, width))] * 2
    noisy = torch.randn(2, *family.latent_shape(parts.configs, height, width), generator=_seeded(0))
    times = torch.tensor([0.3, 0.8])
    single = [Conditioning(**each) for each in encode_each(parts, [PROMPT, OTHER])]
    both = family.stack(single, lambda: family.encode(parts, [""]))
    at_once = family.encode(parts, [PROMPT, OTHER])
    worst = 0.0
    with torch.no_grad():
        for conditioning in (both, at_once):
            together = family.predict(parts, noisy, times, conditioning, sizes)
            for i in range(2):
                one = slice(i, i + 1)
                alone = family.predict(parts, noisy[one], times[one], single[i], sizes[:1])
                worst = max(worst, difference(together[one], alone, f"sample {i}"))
    return worst


def overfit(
    bench: Bench,
    *,
    size: int = 64,
    steps: int = 200,
    batch: int = 8,
    rate: float = 1e-2,
    inference_steps: int = 15,
    options: ObjectiveOptions | None = None,
) -> float:
    """Relative error of the latent that diffusers samples after training on it alone."""
    parts, pipeline = bench.parts(), bench.pipeline()
    family = parts.family
    objective = family.objective(options or ObjectiveOptions(), parts)
    sizes = [SizeInfo((size, size), (0, 0), (size, size))] * batch
    shape = family.latent_shape(parts.configs, size, size)
    clean = torch.randn(1, *shape, generator=_seeded(7))
    latents = clean.expand(batch, *shape)
    conditioning = family.encode(parts, [PROMPT] * batch)
    weights = list(parts.denoiser.requires_grad_(True).parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1, div_factor=2.0, cycle_momentum=False
    )
    for step in range(steps):
        drawn = objective.draw(latents, [("train", 0, step, i) for i in range(batch)])
        answer = family.predict(parts, drawn.noisy, drawn.timesteps, conditioning, sizes)
        objective.losses(answer, drawn).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    getattr(pipeline, family.denoiser).load_state_dict(parts.denoiser.state_dict())
    made = bench.sample(pipeline, size, size, inference_steps)
    found = family.latents_of(parts, made, size, size)
    return noted("overfit", family.name, float((found - clean).norm() / clean.norm()))


def trained_loss(
    bench: Bench, latents: Tensor, share: float, *, height: int, width: int
) -> tuple[float, Tensor, Components]:
    """Our loss of one image's latents as its autoencoder gives them, at a share of noise.

    Returns:
        The loss, the noise that it was for, and the parts.
    """
    parts = bench.parts()
    family = parts.family
    objective = family.objective(ObjectiveOptions(), parts)
    clean = family.scaled(parts, latents)
    drawn = objective.draw(clean, [("train", 0, 0, 0)], timesteps=torch.tensor([share]))
    with torch.no_grad():
        answer = family.predict(
            parts,
            drawn.noisy,
            drawn.timesteps,
            family.encode(parts, [PROMPT]),
            [SizeInfo((height, width), (0, 0), (height, width))],
        )
    return float(objective.losses(answer, drawn)), drawn.noise, parts


def predict(parts: Components, *, height: int = 64, width: int = 96) -> Tensor:
    """The denoiser's answer to noise drawn once and for all, half way, for PROMPT."""
    shape = parts.family.latent_shape(parts.configs, height, width)
    with torch.no_grad():
        return parts.family.predict(
            parts,
            torch.randn(1, *shape, generator=_seeded(0)),
            torch.tensor([0.5]),
            parts.family.encode(parts, [PROMPT]),
            [SizeInfo((height, width), (0, 0), (height, width))],
        )


def recorded(bench: Bench, pipeline: Any, height: int, width: int, steps: int) -> list[Step]:
    """Every step of a pipeline that samples PROMPT."""
    scheduler = pipeline.scheduler
    plain = scheduler.step
    found: list[Step] = []

    def step(answer: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Any:
        made = plain(answer, timestep, sample, **more)
        sigma = float(scheduler.sigmas[scheduler.step_index - 1])
        found.append(Step(made_calls[-1], sample.clone(), answer.clone(), sigma))
        return made

    scheduler.step = step
    with calls(pipeline.transformer) as made_calls:
        bench.sample(pipeline, height, width, steps)
    assert len(made_calls) == len(found) == steps
    return found


@contextmanager
def calls(module: Any) -> Iterator[list[dict[str, Any]]]:
    """What a module is called with meanwhile, by the names of its parameters."""
    plain = module.forward
    names = inspect.signature(plain)
    found: list[dict[str, Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = copy.deepcopy(dict(names.bind(*args, **kwargs).arguments))
        # The many ways to say that there is nothing.
        found.append({k: v for k, v in given.items() if k != "return_dict" and not _nothing(v)})
        return plain(*args, **kwargs)

    module.forward = forward
    try:
        yield found
    finally:
        del module.forward


def _nothing(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def difference(ours: Any, theirs: Any, name: str) -> float:
    """Largest difference of two trees of tensors and numbers, relative to sizes above 1."""
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor), f"{name}: {type(ours)} instead of a tensor"
        assert ours.shape == theirs.shape, f"{name}: {ours.shape}, the pipeline {theirs.shape}"
        # A mask of numbers is added to the scores, one of truths hides.
        assert ours.dtype == theirs.dtype, f"{name}: {ours.dtype}, the pipeline {theirs.dtype}"
        apart = (ours.double() - theirs.double()).abs() / theirs.double().abs().clamp(min=1.0)
        return float(apart.max()) if apart.numel() else 0.0
    if isinstance(theirs, Mapping):
        assert set(ours) == set(theirs), f"{name}: {sorted(ours)}, the pipeline {sorted(theirs)}"
        return max(
            (difference(ours[key], theirs[key], f"{name}.{key}") for key in theirs), default=0.0
        )
    if isinstance(theirs, Sequence) and not isinstance(theirs, str):
        assert len(ours) == len(theirs), f"{name}: {len(ours)}, the pipeline {len(theirs)}"
        pairs = zip(ours, theirs, strict=True)
        return max((difference(a, b, f"{name}[{i}]") for i, (a, b) in enumerate(pairs)), default=0)
    assert ours == theirs, f"{name}: {ours!r}, the pipeline {theirs!r}"
    return 0.0


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
