"""What controls show, and back: without gradio."""

from __future__ import annotations

from typing import Any

import pytest

from dreambooth_core.config.describe import describe
from dreambooth_core.options import TrainConfig
from extension.tab import values


def every() -> dict[str, dict[str, Any]]:
    """All options but the sections, by key."""
    found: dict[str, dict[str, Any]] = {}
    waiting = [describe(TrainConfig)]
    while waiting:
        node = waiting.pop()
        for child in node.get("children", ()):
            waiting += [child, child.get("item", {})]
            if child["type"] != "section" and "[]" not in child["key"]:
                found[child["key"]] = child
    return found


SPECS = {key: spec for key, spec in every().items() if key != "concepts"}


@pytest.mark.parametrize("key", SPECS)
def test_a_default_survives_its_control(key: str) -> None:
    spec = SPECS[key]
    shown = values.to_control(spec, spec["default"])
    assert values.from_control(spec, shown) == spec["default"]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("data.flip", "checkbox"),
        ("method.kind", "dropdown"),
        ("run.steps", "text"),  # may be empty
        ("run.batch_size", "number"),
        ("data.caption_tag_dropout_rate", "slider"),
        ("base.clip_skip", "slider"),
        ("optim.ema.decay", "text"),  # 0.9999: too fine for a slider
        ("validation.prompts", "lines"),
        ("optim.optimizer_args", "lines"),
    ],
)
def test_the_control_fits_the_option(key: str, kind: str) -> None:
    assert values.kind_of(SPECS[key]) == kind


@pytest.mark.parametrize(
    ("key", "shown", "value"),
    [
        ("optim.learning_rate", "1e-4", 1e-4),
        ("optim.learning_rate", "0,0001", 1e-4),
        ("optim.learning_rate", "", None),
        ("run.steps", "500", 500),
        ("run.batch_size", 2.0, 2),
        ("validation.prompts", "a dog\n\n a cat ", ["a dog", "a cat"]),
        ("optim.optimizer_args", "d_coef: 2\n", {"d_coef": "2"}),
        ("base.vae", " ", None),
    ],
)
def test_what_is_typed_is_understood(key: str, shown: Any, value: Any) -> None:
    assert values.from_control(SPECS[key], shown) == value


@pytest.mark.parametrize(
    ("key", "shown", "message"),
    [
        ("run.batch_size", 1.5, "must be a whole number"),
        ("run.batch_size", None, "needs a number"),
        ("optim.learning_rate", "fast", "is 'fast', which is not a number"),
        ("optim.learning_rate", "inf", "is 'inf', which is not a number"),
        ("optim.optimizer_args", "d_coef 2", 'takes lines such as "name: value"'),
    ],
)
def test_what_cannot_be_is_told_at_its_field(key: str, shown: Any, message: str) -> None:
    found, wrong = values.read(SPECS, {key: shown, "run.seed": 3})
    assert found == {"run.seed": 3}
    assert [each.key for each in wrong] == [key]
    assert wrong[0].message.startswith(message)
    assert wrong[0].label == SPECS[key]["label"]


def test_only_changes_are_sent() -> None:
    """So that a new default or a better preset of the engine takes effect."""
    found = {"run.steps": 500, "run.batch_size": 1, "method.rank": 8, "data.flip": True}
    presets = {"run.steps": 500, "method.rank": 16, "data.flip": True}
    assert values.changed(SPECS, found, presets) == {"method.rank": 8}
    assert values.changed(SPECS, {"run.steps": None}, presets) == {"run.steps": None}


def test_a_new_preset_leaves_alone_what_was_set_by_hand() -> None:
    shown = {"run.steps": "700", "method.rank": 16.0, "optim.learning_rate": "0.0001"}
    before = {"run.steps": "500", "method.rank": 16, "optim.learning_rate": "0.0001"}
    after = {"run.steps": "1200", "method.rank": 32, "optim.learning_rate": "1e-4"}
    assert values.overlay(shown, before, after) == {"method.rank": 32}


def test_an_error_leads_to_its_field() -> None:
    keys = [*SPECS, "concepts[0].images", "concepts[1].images"]
    assert values.field_of("concepts[1].images: no such folder", keys) == "concepts[1].images"
    assert values.field_of("run.yaml:3: optim.learning_rate: 'x' is not a number", keys) == (
        "optim.learning_rate"
    )
    assert (
        values.field_of("optim.lr_scheduler needs optim.lr_warmup_steps", keys)
        == "optim.lr_scheduler"
    )
    assert values.field_of("no memory is left", keys) is None


def test_ids_are_what_the_script_makes_of_keys() -> None:
    assert values.element_id("concepts[0].images") == "dreambooth_field_concepts_0_images"
    assert len({values.element_id(key) for key in SPECS}) == len(SPECS)
