"""All wrong values of a form are found at once, each by its key."""

from __future__ import annotations

import pytest

from dreambooth_core.config.describe import flatten, nest
from dreambooth_core.config.loading import load, mark
from dreambooth_core.options import TrainConfig


def test_the_defaults_are_right():
    config = load(TrainConfig, overrides=["concepts=[{images: dog, instance_prompt: a dog}]"])
    assert mark(TrainConfig, flatten(config)) == {}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("optim.learning_rate", "fast", "'fast' is not a number"),
        ("run.batch_size", 0, "0 is too small. Allowed: 1 to 1024"),
        ("run.batch_size", 1.5, "is not a whole number"),
        ("run.batch_size", None, "needs a value"),
        ("data.crop", "middle", "'middle' is not a choice"),
        ("data.crpo", "center", "unknown key data.crpo. Did you mean crop?"),
        ("concepts[0].repeats", -1, "too small"),
        ("concepts[0]imges", "x", "is not a key"),
        ("validation.prompts", "one", "Expected: a list"),
        ("run.name", "${oc.env:HOME}", "interpolation"),
    ],
)
def test_each_wrong_value_is_marked(key, value, words):
    found = mark(TrainConfig, {key: value, "run.seed": 1, "run.steps": None})
    assert list(found) == [key]
    assert words in found[key]


def test_all_at_once():
    assert len(mark(TrainConfig, {"run.seed": -1, "run.epochs": 0, "run.steps": "x"})) == 3


def test_what_was_nested_is_flattened_to_the_same_keys():
    flat = {"run.seed": 1, "concepts[0].images": "dog", "concepts[1].images": "cat"}
    assert flatten(nest(flat)) == flat
    assert flatten(nest({})) == {}
    assert flatten(nest({"validation.prompts": ["a", "b"]})) == {"validation.prompts": ["a", "b"]}
