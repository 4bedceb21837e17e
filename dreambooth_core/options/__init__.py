"""What can be asked of a training run: its whole configuration. Standard library only.

Sections are defined beside the code that reads them, those of the run as a whole in ``run``; what
cannot be combined stands in ``combinations``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dreambooth_core.config.fields import option, section
from dreambooth_core.data.concept_options import ConceptOptions, MarkOptions, PriorOptions
from dreambooth_core.data.options import SMALLEST, DataOptions
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.optim.options import OptimOptions
from dreambooth_core.options.memory import MemoryOptions
from dreambooth_core.options.run import (
    EPOCHS,
    MOST_STEPS,
    LogOptions,
    PublishOptions,
    RunOptions,
    SaveOptions,
    ValidationOptions,
)


@dataclass
class TrainConfig:
    """What is trained, from what, on what, how, and what is written."""

    base: BaseOptions = section(BaseOptions, help="The model that training starts from.")
    concepts: list[ConceptOptions] = option(
        factory=list, help="The subjects: images and prompts of each."
    )
    data: DataOptions = section(
        DataOptions, label="Images", help="How images and captions are prepared."
    )
    marks: MarkOptions = section(
        MarkOptions, label="Marked images", help="Generated images that were called good or bad."
    )
    prior: PriorOptions = section(
        PriorOptions,
        label="Prior preservation",
        help="Class images that keep the class from turning into the subject.",
    )
    method: MethodOptions = section(MethodOptions, help="What is trained, and how large it is.")
    objective: ObjectiveOptions = section(ObjectiveOptions, help="Noise, loss and loss weighting.")
    optim: OptimOptions = section(
        OptimOptions, label="Optimizer", help="Optimizer, learning rate and its schedule."
    )
    memory: MemoryOptions = section(MemoryOptions, help="What saves memory, and what it costs.")
    run: RunOptions = section(RunOptions, help="Name, length, batch size, device.")
    save: SaveOptions = section(SaveOptions, label="Saving", help="Checkpoints and results.")
    validation: ValidationOptions = section(
        ValidationOptions, label="Validation images", help="Images generated during training."
    )
    log: LogOptions = section(LogOptions, label="Logs", help="Where metrics are logged.")
    publish: PublishOptions = section(
        PublishOptions, label="Publishing", help="The result on the Hugging Face hub."
    )

    @property
    def seeks_best(self) -> bool:
        """Whether what was learned is measured on images that are held out."""
        return self.save.best or self.run.stop_when is not None

    @property
    def is_open_ended(self) -> bool:
        """Whether nothing but ``run.stop_when`` says how long the run is."""
        return not (self.run.steps or self.run.epochs) and self.run.stop_when is not None

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run; the most that there can be where it is open-ended."""
        if self.run.steps:
            return self.run.steps
        if self.is_open_ended:
            return MOST_STEPS
        return (self.run.epochs or EPOCHS) * steps_per_epoch

    @property
    def prefers(self) -> bool:
        """Whether pairs of a good and a bad image are trained on."""
        return self.objective.loss == "dpo"

    @property
    def needs_held_out(self) -> bool:
        """Whether nothing but images that are held out can tell which step is best."""
        return self.seeks_best and self.save.best_by == "loss"


def with_resolution(config: TrainConfig, native: int) -> TrainConfig:
    """The configuration with the base's own size (pixels of a side) where it says none."""
    if config.data.resolution is not None:
        return config
    return replace(config, data=replace(config.data, resolution=max(native, SMALLEST)))
