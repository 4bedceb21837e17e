"""What training the real models is estimated to need: ``python -m benchmarks.estimates``.

``--aims`` prints what each is to fit into instead, with RAM and seconds a step.

Nothing is loaded: the networks' configurations (``benchmarks.models``) are traced on the meta
device. One row a model and size: as it is (bf16, AdamW, rank 16), and fitted into budgets by
``memory.budget``.
"""

from __future__ import annotations

import argparse
import logging

from benchmarks.models import MODELS
from dreambooth_core.config.loading import load
from dreambooth_core.errors import UserError
from dreambooth_core.memory.advice import fit
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig

log = logging.getLogger(__name__)

BUDGETS = (8, 12, 16, 24)
GIB = 1024**3

AIMS: tuple[tuple[str, str, int, int], ...] = (
    ("SD 1.5", "lora", 512, 3),
    ("SD 1.5", "full", 512, 5),
    ("SDXL", "lora", 1024, 5),
    ("SDXL", "full", 1024, 12),
    ("Z-Image", "lora", 1024, 6),
    ("Flux.2 Klein 4B", "lora", 1024, 6),
    ("Flux.1 dev", "lora", 1024, 8),
    ("Qwen-Image", "lora", 1024, 12),
)
"""Model, method, side in pixels, and GB of a card that is to be enough."""


def aim(name: str, method: str, size: int, budget: int) -> None:
    """Prints whether a model is estimated to fit where it is to fit."""
    common = [
        f"data.resolution={size}",
        f"method.kind={method}",
        "run.mixed_precision=bf16",
        "run.batch_size=1",
        "optim.optimizer=adamw8bit",
    ]
    config = load(TrainConfig, overrides=[*common, f"memory.budget={budget}GB"])
    try:
        found = fit(config, {"optim.optimizer"}, configs=MODELS[name], elsewhere=True)
    except UserError as error:
        print(f"| {name} | {method} | {size} | {budget} | no: {error.line} | | | |", flush=True)
        return
    needs = found.needs or Planner(found.config, MODELS[name], device="cuda").needs()
    words = ", ".join(f"`{each.words}`" for each in found.taken) or "as it is"
    numbers = f"{needs.peak / GIB:.1f} | {needs.ram / GIB:.0f} | {needs.training.seconds:.1f}"
    print(f"| {name} | {method} | {size} | {budget} | {numbers} | {words} |", flush=True)


def short(words: str) -> str:
    """A setting in a word or two: ``nf4``, ``stream 0.5``."""
    key, _, value = words.removeprefix("memory.").partition("=")
    if key == "gradient_checkpointing":
        return "checkpointing"
    return value if key == "quantize" else f"{key} {value}"


def row(name: str, size: int) -> None:
    """Prints one line of the table."""
    common = [f"data.resolution={size}", "run.mixed_precision=bf16", "run.batch_size=1"]
    config = load(TrainConfig, overrides=common)
    plain = Planner(config, MODELS[name], device="cuda").needs().peak / GIB
    cells = [f"{plain:.1f}"]
    for budget in BUDGETS:
        config = load(TrainConfig, overrides=[*common, f"memory.budget={budget}GB"])
        try:
            found = fit(config, configs=MODELS[name], elsewhere=True)
        except UserError as error:
            log.info("%s", error.line)
            cells.append("no")
            continue
        words = ", ".join(short(each.words) for each in found.taken) or "as it is"
        cells.append(f"{found.needs.peak / GIB:.1f} ({words})" if found.needs else "?")
    print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="models; all of them by default")
    parser.add_argument("--aims", action="store_true", help="what each is to fit into")
    args = parser.parse_args()
    wanted = args.names or list(MODELS)
    if args.aims:
        print("| model | method | px | card, GB | estimate, GiB | RAM, GiB | s a step | settings |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for each in AIMS:
            if each[0] in wanted:
                aim(*each)
        return
    print(f"| model | px | GiB as it is | {' | '.join(f'{b} GB' for b in BUDGETS)} |")
    print(f"| --- | --- | --- {'| --- ' * len(BUDGETS)}|")
    for name in wanted:
        for size in (512, 1024):
            row(name, size)


if __name__ == "__main__":
    main()
