"""What a result says of itself: kohya's ``ss_*`` keys and the SAI model spec (1.0.0)."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core import __version__
from dreambooth_core.bases.locate import hub_id
from dreambooth_core.families.base import Components
from dreambooth_core.options import TrainConfig

PREDICTION = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
"""Prediction types as the model spec spells them; it has none for rectified flow."""


def result_metadata(
    config: TrainConfig,
    parts: Components,
    *,
    name: str,
    step: int,
    epoch: int,
    captions: Mapping[str, Sequence[str]],
    size: tuple[int, int],
) -> dict[str, str]:
    """Metadata for a file that holds this run's result.

    Args:
        name: name of the result, without an ending.
        captions: the captions trained on, by concept, for ``ss_tag_frequency``.
        size: (height, width) in pixels.
    """
    words = ", ".join(c.instance_prompt for c in config.concepts if c.instance_prompt)
    facts: dict[str, Any] = {
        "ss_output_name": name,
        "ss_sd_model_name": hub_id(parts.source) or Path(parts.source).name,
        "base_model_name_or_path": hub_id(parts.source),
        "ss_sd_model_hash": parts.fingerprint,
        "ss_v2": str(parts.family.name == "sd2"),
        "ss_steps": step,
        "ss_epoch": epoch,
        "ss_seed": config.run.seed,
        "ss_learning_rate": config.optim.learning_rate,
        "ss_optimizer": config.optim.optimizer,
        "ss_lr_scheduler": config.optim.lr_scheduler,
        "ss_batch_size_per_device": config.run.batch_size,
        "ss_gradient_accumulation_steps": config.run.gradient_accumulation_steps,
        "ss_mixed_precision": config.run.mixed_precision,
        "ss_clip_skip": parts.clip_skip,
        "ss_resolution": f"({size[1]}, {size[0]})",
        "ss_prior_loss_weight": config.prior.loss_weight if config.prior.enabled else 0,
        "ss_num_train_images": sum(len(texts) for texts in captions.values()),
        "ss_training_finished_at": round(time.time(), 1),
        "ss_tag_frequency": json.dumps(_tags(captions), ensure_ascii=False),
        "modelspec.title": name,
        "modelspec.author": "",
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "modelspec.resolution": f"{size[1]}x{size[0]}",
        "modelspec.prediction_type": PREDICTION.get(parts.prediction_type),
        "modelspec.trigger_phrase": words,
        "modelspec.description": f"Made with dreambooth {__version__}.",
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}


def _tags(captions: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Tags (parts between commas) and how often each occurs, by concept."""
    return {
        concept: dict(Counter(tag.strip() for text in texts for tag in text.split(",")))
        for concept, texts in captions.items()
    }
