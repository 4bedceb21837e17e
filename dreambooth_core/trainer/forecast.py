"""What a run would do, found out without doing it: the report of ``dreambooth check``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

from dreambooth_core.data.quality import examine
from dreambooth_core.trainer.advice import fit
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.decide import decide
from dreambooth_core.trainer.watch import estimate_of


@dataclass(frozen=True)
class Forecast:
    """What a run would do."""

    base: str
    family: str
    family_label: str
    prediction_type: str
    device: str
    precision: str
    steps: int
    steps_per_epoch: int
    trainable: dict[str, int]
    """Trained parameters by component."""
    data: dict[str, Any]
    """Images taken and skipped, buckets, captions, as in the receipt."""
    captions: dict[str, dict[str, Any]]
    """The first caption of each kind, with its tokens."""
    class_images: dict[str, dict[str, int]] = field(default_factory=dict)
    """By class prompt: how many are there and missing."""
    memory: dict[str, Any] | None = None
    """The memory that it needs, in bytes; None where that could not be found out."""
    warnings: list[str] = field(default_factory=list)
    config: TrainConfig = field(default_factory=TrainConfig)
    """What would be in effect."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without the configuration."""
        values = asdict(self)
        del values["config"]
        return values


def forecast(config: TrainConfig, by_hand: Collection[str] = ()) -> Forecast:
    """Looks at the base and at the images; trains and writes nothing.

    Weights are read only where class images are asked for, which are kept by the weights that
    made them.

    Args:
        config: the run, which is fitted into its memory budget first.
        by_hand: dotted keys that a person set.

    Raises:
        UserError: as :func:`dreambooth_core.trainer.decide.decide`.
    """
    fitted = fit(config, by_hand)
    config = fitted.config
    found = decide(config, weights=config.prior.makes_images)
    config = found.config
    parts, items, device = found.parts, found.items, found.device
    missing = {
        prompt: {"there": len(state.inventory.taken), "missing": len(state.missing)}
        for prompt, state in found.class_images.items()
    }
    needs = estimate_of(config, parts.configs, device)
    warnings = [w for concept in found.concepts for w in concept.inventory.warnings]
    for concept in found.concepts:
        seen = examine(concept.inventory.taken, config.data.background)
        warnings += [finding.line for finding in seen]
    return Forecast(
        base=parts.source,
        family=parts.family.name,
        family_label=parts.family.label,
        prediction_type=parts.prediction_type,
        device=str(device),
        precision=config.run.mixed_precision,
        steps=found.steps,
        steps_per_epoch=found.plan.steps_per_epoch,
        trainable=found.trainable,
        data=items.as_dict(),
        captions={
            kind: {"text": text, "tokens": parts.family.first_tokens(parts, text)}
            for kind, text in items.first_captions().items()
        },
        class_images=missing,
        memory={**needs.as_dict(), **fitted.as_dict()} if needs else None,
        config=config,
        warnings=[*warnings, *items.warnings()],
    )
