"""What a run would do, found out without doing it: the report of ``dreambooth check``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from dreambooth_core.data.concepts import gather
from dreambooth_core.data.items import Items
from dreambooth_core.families.loading import load_base
from dreambooth_core.methods.base import method_for
from dreambooth_core.methods.table import METHODS
from dreambooth_core.trainer import publish
from dreambooth_core.trainer.build import check_combinations, parameter_groups
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.precision import make_precision
from dreambooth_core.trainer.priors import class_images
from dreambooth_core.trainer.processes import choose_device
from dreambooth_core.trainer.watch import configs_in, estimate_of


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
    """Pictures taken and skipped, buckets, captions, as in the receipt."""
    captions: dict[str, dict[str, Any]]
    """The first caption of each kind, with its tokens."""
    class_images: dict[str, dict[str, int]] = field(default_factory=dict)
    """By class prompt: how many are there and missing."""
    memory: dict[str, Any] | None = None
    """The memory that it needs, in bytes; None where that could not be found out."""
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def forecast(config: TrainConfig) -> Forecast:
    """Looks at the base and at the pictures; trains and writes nothing.

    Weights are read only where they are asked for: class images are kept by the weights that
    made them, and learned tokens begin as others are.

    Raises:
        UserError: whatever would stop the run before its first step.
    """
    publish.check(config)
    concepts = gather(config.concepts, config.data, config.prior)
    device = choose_device(config.run.device)
    make_precision(config.run.mixed_precision, device, tf32=config.memory.tf32)
    weights = config.prior.enabled or METHODS[config.method.kind].learns_token
    parts = load_base(config.base, weights=weights)
    items = Items(concepts, config.data, seed=config.run.seed)
    plan = items.plan(batch_size=config.run.batch_size, accumulation=config.run.accumulation)
    if not weights:
        for model in parts.models.values():
            model.to("meta")  # only counted, so nothing is copied
    trainables = method_for(config.method, parts).attach(config.run.seed)
    check_combinations(config, parameter_groups(config, trainables, 1), device.type, 1)
    missing: dict[str, dict[str, int]] = {}
    if config.prior.enabled:
        for concept in concepts:
            state = class_images(config, concept, parts.fingerprint)
            missing[concept.options.class_prompt] = {
                "there": len(state.inventory.taken),
                "missing": len(state.missing),
            }
    needs = estimate_of(config, configs_in(parts), device)
    warnings = [w for concept in concepts for w in concept.inventory.warnings]
    return Forecast(
        base=parts.source,
        family=parts.family.name,
        family_label=parts.family.label,
        prediction_type=parts.prediction_type,
        device=str(device),
        precision=config.run.mixed_precision,
        steps=config.run.steps or config.run.epochs * plan.steps_per_epoch,
        steps_per_epoch=plan.steps_per_epoch,
        trainable={group.component: group.count for group in trainables},
        data=items.as_dict(),
        captions={
            kind: {"text": text, "tokens": parts.family.first_tokens(parts, text)}
            for kind, text in items.first_captions().items()
        },
        class_images=missing,
        memory=needs.as_dict() if needs else None,
        warnings=[*warnings, *items.warnings()],
    )
