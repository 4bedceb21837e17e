"""A run with what went through it: captions, noise, predictions, masks, losses, the run itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from helpers.runs import KeptBase, bare, folder_for, undecorated
from torch import Tensor

from dreambooth_core.data.plan import Slot
from dreambooth_core.families.base import Conditioning
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import Event, RunFolder, read_receipt
from dreambooth_core.methods.table import METHODS
from dreambooth_core.objective.objective import NoisySample, Objective
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer import run as runs
from dreambooth_core.trainer.samples import Samples
from dreambooth_core.trainer.train import Training


@dataclass
class Pass:
    """One forward pass of training."""

    captions: list[str]
    clean: Tensor
    sample: NoisySample
    prediction: Tensor
    mask: Tensor | None
    losses: Tensor
    """Weighted loss of each sample, ``[B]``."""


@dataclass
class Observed:
    """A run that is over."""

    folder: RunFolder
    training: Training
    passes: list[Pass] = field(default_factory=list)
    processors: list[Any] = field(default_factory=list)
    """The UNet's attention processors while it was trained; the proof changes them."""

    @property
    def receipt(self) -> dict[str, Any]:
        """The run's receipt."""
        return dict(read_receipt(self.folder))

    @property
    def result(self) -> dict[str, Tensor]:
        """The tensors of the result's file."""
        return read_tensors(self.folder.path / self.receipt["result"]["file"])

    @property
    def captions(self) -> list[str]:
        """Every caption that was trained with, in order."""
        return [text for one in self.passes for text in one.captions]

    @property
    def timesteps(self) -> list[int]:
        """The timestep of every sample, in order."""
        return [int(t) for one in self.passes for t in one.sample.timesteps]

    def progress(self, stage: str) -> list[Event]:
        """The progress events of a stage."""
        return [event for event in self.folder.events if event.get("stage") == stage]

    def told(self, name: str) -> list[Any]:
        """A number of each step as the run reported it, such as ``loss`` or ``lr``."""
        return [event[name] for event in self.progress("train")]

    def samples(self) -> list[Event]:
        """The events of validation images."""
        return [event for event in self.folder.events if event["kind"] == "sample"]


_kept = KeptBase()


def observe(config: TrainConfig, *, proven: bool = False, fresh: bool = False) -> Observed:
    """Does a whole run in this process and keeps what went through it. A base that the last one
    left unchanged is not read again, and after the run is as it was before it, but for ``fresh``.

    Without the estimate of its memory, the picture of its losses and, unless asked for, the proof
    of its result, which take most of the time of a run as short as this.
    """
    folder = folder_for(config)
    trainings: list[Training] = []
    processors: list[Any] = []
    texts: list[list[str]] = []
    drawn: list[Tensor] = []
    passes: list[Pass] = []
    train, losses = Training.train, Objective.losses
    draw, conditioning = Objective.draw, Samples.conditioning

    def train_(training: Training) -> None:
        trainings.append(training)
        processors.extend(training.parts.denoiser.attn_processors.values())
        train(training)

    def draw_(self: Objective, latents: Tensor, *args: Any, **more: Any) -> NoisySample:
        drawn.append(latents.detach().clone())
        return draw(self, latents, *args, **more)

    def conditioning_(self: Samples, group: Sequence[Slot], step: int) -> Conditioning:
        texts.append([self.items.caption(slot) for slot in group])
        return conditioning(self, group, step)

    def losses_(
        self: Objective, prediction: Tensor, sample: NoisySample, mask: Tensor | None = None
    ) -> Tensor:
        found = losses(self, prediction, sample, mask)
        seen = prediction.detach().float().clone()
        passes.append(Pass(texts[-1], drawn[-1], sample, seen, mask, found.detach().clone()))
        return found

    kept = None if fresh or METHODS[config.method.kind].learns_token else _kept
    with (
        undecorated() if proven else bare(),
        mock.patch.object(Training, "train", train_),
        mock.patch.object(Objective, "draw", draw_),
        mock.patch.object(Objective, "losses", losses_),
        mock.patch.object(Samples, "conditioning", conditioning_),
    ):
        runs.run(folder, kept=kept)
    return Observed(folder, trainings[0], passes, processors)
