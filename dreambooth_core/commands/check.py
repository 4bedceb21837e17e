"""``dreambooth check CONFIG``: what a run would do, without doing it."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.options import argument, print_json
from dreambooth_core.commands.train import Configured, read_by_hand
from dreambooth_core.config.describe import flatten
from dreambooth_core.deferral import load_libraries
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.combinations import refuse_settings

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(kw_only=True)
class Options(Configured):
    """What the command takes."""

    values: bool = argument(
        False, help="only the settings, fitted into memory.budget if that is a size; no images"
    )
    json: bool = argument(False, help="print the report as JSON")


def run(args: Options) -> None:
    """Prints the report."""
    config, by_hand = read_by_hand(args)
    if args.values:
        refuse_settings(config)
        if config.memory.budget != "auto":
            load_libraries()
            from dreambooth_core.memory.advice import fit

            config = fit(config, by_hand, elsewhere=True).config
        values = flatten(config)
        if args.json:
            print_json({"config": values})
        else:
            sys.stdout.writelines(f"{key} = {value}\n" for key, value in values.items())
        return
    load_libraries()
    found = forecast(config, by_hand)
    if args.json:
        print_json(found)
    else:
        from dreambooth_core.commands.console import terminal

        show(found, terminal())


def forecast(config: TrainConfig, by_hand: Collection[str] = ()) -> dict[str, Any]:
    """What a run would do, in plain JSON values; trains and writes nothing.

    Weights are read only where class images are asked for, which are kept by the weights that
    made them.

    Args:
        config: the run, which is fitted into its memory budget first.
        by_hand: dotted keys that a person set.

    Raises:
        UserError: as :func:`dreambooth_core.trainer.decide.decide`.
    """
    from dreambooth_core.data.quality import examine
    from dreambooth_core.memory.advice import fit
    from dreambooth_core.memory.needs import estimate_of
    from dreambooth_core.trainer.decide import decide, told_captions

    fitted = fit(config, by_hand)
    found = decide(fitted.config, weights=config.prior.makes_images)
    parts, items = found.parts, found.items
    needs = estimate_of(found.config, parts.configs, found.device)
    warnings = [w for concept in found.concepts for w in concept.inventory.warnings]
    for concept in found.concepts:
        seen = examine(concept.inventory.taken, config.data.background)
        warnings += [finding.line for finding in seen]
    return {
        "base": parts.source,
        "family": parts.family.name,
        "family_label": parts.family.label,
        "prediction_type": parts.prediction_type,
        "device": str(found.device),
        "precision": found.config.run.mixed_precision,
        "steps": found.steps,
        "steps_per_epoch": found.plan.steps_per_epoch,
        "trainable": found.trainable,
        "data": items.as_dict(),
        "captions": told_captions(parts, items),
        "class_images": {
            prompt: {"there": len(state.inventory.taken), "missing": len(state.missing)}
            for prompt, state in found.class_images.items()
        },
        "memory": {**needs.as_dict(), **fitted.as_dict()} if needs else None,
        "warnings": [*warnings, *items.warnings()],
        "config": flatten(found.config),
    }


def show(found: dict[str, Any], console: Console) -> None:
    """The report for people."""
    from dreambooth_core.commands.console import facts, words

    console.print(facts(summary(found)))
    for concept in found["data"]["concepts"]:
        for one in concept["images"]["skipped"]:
            console.print(words(("skipped", "yellow"), f" {one['name']}: {one['reason']}"))
    for warning in found["warnings"]:
        console.print(words(("warning", "yellow"), f" {warning}"))


def summary(found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Name and value of each line of the report."""
    taken = sum(len(concept["images"]["taken"]) for concept in found["data"]["concepts"])
    skipped = sum(len(concept["images"]["skipped"]) for concept in found["data"]["concepts"])
    lines = [
        ("base", "{base} ({family_label}, {prediction_type})".format_map(found)),
        ("images", f"{taken} taken, {skipped} skipped"),
        ("sizes", ", ".join(f"{n} x {size}" for size, n in found["data"]["buckets"].items())),
        ("steps", "{steps} ({steps_per_epoch} an epoch)".format_map(found)),
        ("trained", ", ".join(f"{n:,} in {name}" for name, n in found["trainable"].items())),
        ("device", "{device}, precision {precision}".format_map(found)),
    ]
    memory = found["memory"] or {}
    if memory:
        from dreambooth_core.memory.measure import amount

        lines.append(("memory", f"about {amount(memory['peak'])} on the {found['device']}"))
    for each in memory.get("measures", ()):
        lines.append(("to fit", f"{each['measure']}: {each['settings']} ({each['cost']})"))
    for kind, caption in found["captions"].items():
        lines.append((f"{kind} caption", f"{caption['text']}  {caption['tokens']}"))
    for name, missing in found["class_images"].items():
        lines.append(
            ("class images", f"{missing['there']} there, {missing['missing']} to be made: {name}")
        )
    return lines
