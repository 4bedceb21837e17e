"""``dreambooth check CONFIG``: what a run would do, without doing it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.options import argument
from dreambooth_core.commands.train import Configured, read_by_hand
from dreambooth_core.config.describe import flatten
from dreambooth_core.deferral import load_libraries
from dreambooth_core.trainer.combinations import refuse_settings

if TYPE_CHECKING:
    from rich.console import Console

    from dreambooth_core.trainer.forecast import Forecast


@dataclass(kw_only=True)
class Options(Configured):
    """What the command takes."""

    values: bool = argument(
        False, help="only the settings, fitted into memory.budget if that is a size; no images"
    )
    json: bool = argument(False, help="print the report as JSON")


def run(args: Options) -> int:
    """Prints the report; returns the exit code."""
    config, by_hand = read_by_hand(args)
    if args.values:
        refuse_settings(config)
        if config.memory.budget != "auto":
            load_libraries()
            from dreambooth_core.trainer.advice import fit

            config = fit(config, by_hand, elsewhere=True).config
        values = flatten(config)
        if args.json:
            json.dump({"config": values}, sys.stdout, indent=2, ensure_ascii=False)
            sys.stdout.write("\n")
        else:
            sys.stdout.writelines(f"{key} = {value}\n" for key, value in values.items())
        return 0
    load_libraries()
    from dreambooth_core.trainer.forecast import forecast

    found = forecast(config, by_hand)
    if args.json:
        report = {**found.as_dict(), "config": flatten(found.config)}
        json.dump(report, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        from dreambooth_core.commands.console import terminal

        show(found, terminal())
    return 0


def show(found: Forecast, console: Console) -> None:
    """The report for people."""
    from dreambooth_core.commands.console import facts, words

    console.print(facts(summary(found)))
    for concept in found.data["concepts"]:
        for one in concept["images"]["skipped"]:
            console.print(words(("skipped", "yellow"), f" {one['name']}: {one['reason']}"))
    for warning in found.warnings:
        console.print(words(("warning", "yellow"), f" {warning}"))


def summary(found: Forecast) -> list[tuple[str, Any]]:
    """Name and value of each line of the report."""
    taken = sum(len(concept["images"]["taken"]) for concept in found.data["concepts"])
    skipped = sum(len(concept["images"]["skipped"]) for concept in found.data["concepts"])
    lines = [
        ("base", f"{found.base} ({found.family_label}, {found.prediction_type})"),
        ("images", f"{taken} taken, {skipped} skipped"),
        ("sizes", ", ".join(f"{n} x {size}" for size, n in found.data["buckets"].items())),
        ("steps", f"{found.steps} ({found.steps_per_epoch} an epoch)"),
        ("trained", ", ".join(f"{n:,} in {name}" for name, n in found.trainable.items())),
        ("device", f"{found.device}, precision {found.precision}"),
    ]
    if found.memory:
        from dreambooth_core.memory.measure import amount

        lines.append(("memory", f"about {amount(found.memory['peak'])} on the {found.device}"))
    for each in (found.memory or {}).get("measures", ()):
        lines.append(("to fit", f"{each['measure']}: {each['settings']} ({each['cost']})"))
    for kind, caption in found.captions.items():
        lines.append((f"{kind} caption", f"{caption['text']}  {caption['tokens']}"))
    for name, missing in found.class_images.items():
        lines.append(
            ("class images", f"{missing['there']} there, {missing['missing']} to be made: {name}")
        )
    return lines
