"""Which node and widget stand for a key of the engine."""

from __future__ import annotations

from functools import cache

from . import settings, tools, training


@cache
def places() -> dict[str, str]:
    """Node and widget by the engine's key, and by the last part of it."""
    found: dict[str, str] = {}

    def add(key: str, node: str, label: str, *, short: bool = True) -> None:
        found[key] = f"“{label}” ({node})"
        if short:
            found.setdefault(key.rpartition(".")[2], found[key])

    main = {each.id: each.label for each in settings.MAIN.inputs}
    for key, name in (
        ("run.steps", "steps"),
        ("run.seed", "random_seed"),
        ("memory.budget", "memory"),
        ("overrides", "overrides"),
    ):
        add(key, settings.MAIN.label, main[name])
    train = training.TRAIN_LORA
    labels = {each.id: each.label for each in train.inputs}
    add("method.kind", train.label, labels["method"])
    add("base.model", train.label, labels["checkpoint"])
    add("validation.prompts", train.label, labels["sample_prompts"])
    add("validation.every_steps", train.label, labels["sample_every"], short=False)
    for said, made in training.WORD_WIDGETS:
        add(said["key"], training.TRAIN_EMBEDDING.label, made.label)
    for key, node, label in settings.places():
        add(key, node, label)
    for each in tools.MERGE.inputs:
        found.setdefault(each.id, f"“{each.label}”")
    return found
