"""The engine's errors in the graph's words: nodes and widgets in place of keys and flags."""

from __future__ import annotations

import re
from functools import cache

from dreambooth_core.errors import DreamBoothError

_KEY = re.compile(r"\b[a-z_]+(?:\.[a-z_0-9]+)+\b")
_FLAG = re.compile(r"--([A-Za-z_]+)")
_AS_KEY = "Set it in the file or as key=value."
COMMAND_LINE = "command line"
"""Where the engine thinks that the overrides' lines were written."""

SENT = "settings.json"
"""The file in which a graph's settings go to the engine: nobody has written it by hand."""


def in_words(error: DreamBoothError) -> DreamBoothError:
    """The same error, told to somebody who looks at a graph."""
    where, what, do = error.where, error.what, error.do
    named = _KEY.search(what)
    if named and named.group() in _places() and what.startswith(f"{named.group()}: "):
        where, what = _places()[named.group()], what.removeprefix(f"{named.group()}: ")
    elif where and where.startswith(COMMAND_LINE):
        where = _places()["overrides"]
    elif where and SENT in where:
        where = None
    said = do and do.replace(_AS_KEY, f"Set it in {_places()['overrides']}, as key=value.")
    return type(error)(_told(what), where=where, do=said and _told(said))


def _told(text: str) -> str:
    text = _FLAG.sub(lambda flag: _places().get(flag[1], flag[1].replace("_", " ")), text)
    return _KEY.sub(lambda key: _places().get(key.group(), key.group()), text)


@cache
def _places() -> dict[str, str]:
    """Node and widget by the engine's key, and by the last part of it."""
    from . import settings, tools, training

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
