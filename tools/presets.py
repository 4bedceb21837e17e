"""Writes the memory presets: ``python -m tools.presets`` from the clone's root.

For each GPU, method and family it takes the recipe that needs most, and changes as little as
makes its estimated peak fit. Run it again when recipes or the estimate change.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.config.catalogue import FAMILIES, METHODS, SHIPPED, TIERS
from dreambooth_core.config.loading import load
from dreambooth_core.disk import write_text
from dreambooth_core.formats.checkpoints.stock import stock_configs
from dreambooth_core.memory.estimate import GIB
from dreambooth_core.trainer.advice import (
    USABLE,
    Changes,
    Suggestion,
    cheaper,
    with_loss,
    without_loss,
)
from dreambooth_core.trainer.config import TrainConfig
from dreambooth_core.trainer.needs import Needs, Planner

VERSION = "1"
NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL"}
WHY = {
    "memory.gradient_checkpointing": "Recomputes activations: much less memory, a third slower.",
    "optim.optimizer": {
        "adamw": "There is room for AdamW's states in full.",
        "adamw8bit": "The same results with a quarter of AdamW's memory.",
        "adafactor": "Keeps row and column sums in place of Adam's averages.",
    },
    "prior.batch_size": "Class images are decoded one at a time.",
    "run.batch_size": "One picture at a time. Recipes with a larger batch then see fewer: raise "
    "run.steps if the\n# likeness stays weak.",
    "memory.quantize": "The frozen base in 4 bits: slightly less exact.",
    "method.train_text_encoder": "Does not fit: the text encoder stays as it is.",
    "optim.fused_backward_pass": "Each weight steps as soon as its gradient is there: never all at "
    "once. Excludes\n# clipping, accumulation and fp16.",
    "run.mixed_precision": "Weights in bf16 too, rounded by chance so that small steps count.",
    "prior.enabled": "Making class images does not fit.",
}


def ladder(config: TrainConfig) -> Iterator[Changes]:
    """What a memory preset may change: never the resolution."""
    for step in (*without_loss(config), *with_loss(config)):
        # Accumulation would change recipes that work on one picture at a time.
        step.pop("run.gradient_accumulation_steps", None)
        if "data.resolution" not in step:
            yield step


SIDES = {"sd1": 512, "sd2": 768, "sdxl": 1024}
"""Pixels of a side that the largest models of each family were made for."""


def heaviest(method: str, family: str) -> TrainConfig:
    """The recipe that needs most, as fast as it can be: nothing saved yet."""
    quick = [
        "run.device=cuda",
        "memory.gradient_checkpointing=false",
        "optim.optimizer=adamw",
        f"data.resolution={SIDES[family]}",
    ]
    return load(TrainConfig, preset=f"person-{method}-{family}", overrides=quick)


def text_of(tier: int, method: str, family: str, changes: Changes, peak: int) -> str:
    """The preset's YAML."""
    name = f"{tier}gb-{method}-{family}"
    what = "Adapters on" if method == "lora" else "Fine-tuning all of"
    lines = [
        f"# {what} {NAMES[family]} with {tier} GB of GPU memory.",
        f"# Estimated peak: {peak / GIB:.1f} GiB, for the recipe that needs most.",
        "# Windows reserves more than Linux, and every open program its part: if steps become many",
        "# times slower, or memory runs out, take the next smaller preset.",
        "",
    ]
    sections: dict[str, list[str]] = {"run": [f'presets: {{{name}: "{VERSION}"}}']}
    for key, value in changes.items():
        section, _, field = key.partition(".")
        why: Any = WHY.get(key, "")
        why = why.get(str(value), "") if isinstance(why, dict) else why
        if key == "memory.gradient_checkpointing" and value is False:
            why = "Fits without, and is faster so."
        inside = sections.setdefault(section, [])
        inside.extend(f"# {part.removeprefix('# ')}" for part in why.splitlines())
        inside.append(f"{field}: {str(value).lower() if isinstance(value, bool) else value}")
    for section, inside in sections.items():
        lines += [f"{section}:", *(f"  {line}" for line in inside)]
    return "\n".join(lines) + "\n"


def write(tier: int, method: str, family: str, before: Needs, every: Sequence[Suggestion]) -> None:
    """Writes the preset of one GPU, if one fits, and says what it found."""
    changes: Changes = {"memory.gradient_checkpointing": False, "optim.optimizer": "adamw"}
    needs, limit = before, int(tier * GIB * USABLE)
    for step in every:
        if needs.peak <= limit:
            break
        changes |= step.changes
        needs = step.needs
    path = Path(SHIPPED) / "memory" / f"{tier}gb-{method}-{family}.yaml"
    path.unlink(missing_ok=True)
    fits = needs.peak <= limit
    if fits:
        write_text(path, text_of(tier, method, family, changes, needs.peak))
    words = " ".join(f"{key}={value}" for key, value in changes.items())
    verdict = "" if fits else "does not fit: "
    sys.stdout.write(f"{path.stem:18} {needs.peak / GIB:5.1f} GiB  {verdict}{words}\n")
    sys.stdout.flush()


def main() -> int:
    """Writes all that fit."""
    for family in FAMILIES:
        configs = stock_configs(family)
        for method in METHODS:
            config = heaviest(method, family)
            before = Planner(config, configs).needs()
            # Down to nothing; a GPU stops at the first that fits.
            every = cheaper(config, 0, configs=configs, ladder=ladder)
            for tier in TIERS:
                write(tier, method, family, before, every)
    return 0


if __name__ == "__main__":
    sys.exit(main())
