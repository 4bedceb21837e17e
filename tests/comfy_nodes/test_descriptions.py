"""Every node as the host sees it, in the older schema; the real host checks the newer one."""

from __future__ import annotations

import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.comfy_workflows import WIDGETS

import comfy_nodes
from comfy_nodes import settings, training
from comfy_nodes.description import (
    ADAPTER,
    BASE,
    CONCEPT,
    FILE_NAME,
    IMAGES,
    SETTINGS,
    STACK,
    Node,
)
from comfy_nodes.words import in_words
from dreambooth_core.config.catalogue import entries
from dreambooth_core.config.describe import describe, flatten
from dreambooth_core.errors import UserError
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig

ROOT = Path(__file__).parents[2]
HOST_TYPES = ("MODEL", "CLIP", "VAE", "IMAGE", "MASK", "STRING")
OURS = (ADAPTER, BASE, CONCEPT, IMAGES, SETTINGS, STACK)

nodes = pytest.mark.parametrize("node", comfy_nodes.NODES, ids=lambda node: node.id)


def test_ids_are_unique_and_ours() -> None:
    ids = [node.id for node in comfy_nodes.NODES]
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("DreamBooth") for name in ids)


@nodes
def test_a_node_is_described_whole(node: Node) -> None:
    names = [each.id for each in node.inputs]
    assert len(set(names)) == len(names)
    assert not {"seed", "noise_seed"} & set(names), "the page would change it by itself"
    assert node.about.endswith(".") and node.label and node.category.startswith("DreamBooth")
    for each in node.inputs:
        assert each.tooltip.endswith((".", "?")), each.id
        assert each.label, each.id
        assert each.type in (*WIDGETS, *HOST_TYPES, *OURS), each.id
        if each.type in ("INT", "FLOAT"):
            low, high = each.minimum, each.maximum
            assert low is not None and high is not None, each.id
            assert low <= each.default <= high, each.id
    for output in node.outputs:
        assert output.tooltip.endswith("."), output.label
        assert output.type in (*WIDGETS, *HOST_TYPES, *OURS, FILE_NAME)


@nodes
def test_the_older_schema_has_it_all(node: Node, host: Any) -> None:
    kind: Any = comfy_nodes.mappings()[0][node.id]
    types = kind.INPUT_TYPES()
    assert types["hidden"] == {"unique_id": "UNIQUE_ID"}
    said = {**types["required"], **types["optional"]}
    assert list(said) == [
        i.id
        for i in (
            *[i for i in node.inputs if not i.optional],
            *[i for i in node.inputs if i.optional],
        )
    ]
    for each in node.inputs:
        kind_of, options = said[each.id]
        assert options["tooltip"] == each.tooltip
        if each.type == "COMBO":
            assert isinstance(kind_of, list)
            assert each.default is None or each.default in kind_of
        else:
            assert kind_of == each.type
    assert len(kind.RETURN_TYPES) == len(kind.RETURN_NAMES) == len(kind.OUTPUT_TOOLTIPS)
    assert (node.fingerprint is not None) == hasattr(kind, "IS_CHANGED")


def test_every_setting_of_the_engine_can_be_set() -> None:
    """By a widget, by another node, or (publishing, logs) by the overrides' text."""
    sections = {each["name"]: each for each in describe(TrainConfig)["children"]}
    for name in settings.SECTIONS:
        node = next(n for n in settings.NODES if n.id == f"DreamBoothSettings{name.title()}")
        known = {each.id for each in node.inputs}
        for said in settings.leaves(sections[name]):
            widget = settings.widget_name(said, name)
            assert (widget in known) != (said["key"] in settings.LEFT_OUT), said["key"]
    elsewhere = {"concepts", "validation", "log", "publish"}
    assert set(sections) == set(settings.SECTIONS) | elsewhere


@pytest.mark.parametrize("node", settings.NODES[1:], ids=lambda node: node.id)
def test_defaults_set_nothing(node: Node, run: Any) -> None:
    (made,) = run(node.id)
    assert made == settings.Settings()


def test_a_files_name_goes_where_one_is_chosen() -> None:
    """The host refuses a link between types that differ by ``!=``."""
    assert not operator.ne(FILE_NAME, ["a.safetensors", "b.safetensors"])
    assert operator.ne(FILE_NAME, "MODEL") and "STRING" in FILE_NAME.split(",")


def test_settings_chain(run: Any) -> None:
    (method,) = run("DreamBoothSettingsMethod", rank="8", text_rank="4")
    (optim,) = run("DreamBoothSettingsOptim", ema_enabled="on", settings=method)
    (made,) = run("DreamBoothSettings", steps=20, overrides="data.flip=true\n", settings=optim)
    assert made.presets == ("object-lora-sd1",)
    assert made.values == {
        "method.rank": 8,
        "method.text_rank": 4,
        "optim.ema.enabled": True,
        "run.mixed_precision": "no",
        "run.seed": 0,
        "run.steps": 20,
    }
    assert made.texts == ("data.flip=true",)


@pytest.mark.parametrize(("memory", "budget"), [("8gb", "8GB"), ("(none)", None), ("auto", None)])
def test_the_memory_budget(run: Any, memory: str, budget: str | None) -> None:
    """No GPU here, so that auto has nothing to name."""
    (made,) = run("DreamBoothSettings", memory=memory)
    assert made.values.get("memory.budget") == budget


NUMBERS = [
    (said, section)
    for section in settings.SECTIONS
    for said in settings.leaves(
        next(t for t in describe(TrainConfig)["children"] if t["name"] == section)
    )
    if said["type"] in ("int", "float")
]


def test_every_method_of_the_engine_has_a_node() -> None:
    """And what only one of them reads is not offered beside the others."""
    assert {*training.KINDS, *training.WORDS, training.FULL} == set(METHODS.ours())
    offered = {each.id for each in training.TRAIN_EMBEDDING.inputs}
    words = {"token", "initializer_token", "vectors", "embedding_learning_rate"}
    assert words < offered
    assert not words & {each.id for node in settings.NODES for each in node.inputs}


def test_no_number_is_rounded_by_its_widget() -> None:
    """Defaults, limits, and every number of every preset come back as they were."""
    set_by_presets: dict[str, set[Any]] = {}
    for preset in entries():
        for key, value in flatten(yaml.safe_load(preset.text)).items():
            set_by_presets.setdefault(key, set()).add(value)
    assert len(NUMBERS) > 60 and len(set_by_presets) > 15
    for said, section in NUMBERS:
        widget = settings.widget(said, section)
        assert widget is not None and (widget.type, widget.default) == ("STRING", "as the preset")
        assert settings.is_left(said, "as the preset") and settings.is_left(said, " ")
        kept = {said["default"], said["minimum"], said["maximum"], 1e-8, 0.9995, 3.3e-8}
        for value in kept | set_by_presets.get(said["key"], set()):
            allowed = value is not None and said["minimum"] <= value <= said["maximum"]
            if allowed and (said["type"] == "float" or value == int(value)):
                text = settings.shown_number(value)
                found = settings.value_of(said, text, "here")
                assert found == value and type(found).__name__ == said["type"]
        if said["optional"]:
            assert settings.value_of(said, "None", "here") is None


def test_several_numbers_are_one_on_each_line() -> None:
    sections = {each["name"]: each for each in describe(TrainConfig)["children"]}
    leaves = settings.leaves(sections["data"])
    said = next(each for each in leaves if each["key"] == "data.resolutions")
    assert settings.value_of(said, " 768\n\n1024", "here") == [768, 1024]
    with pytest.raises(UserError, match="5 is too small"):
        settings.value_of(said, "768\n5", "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nan", "nan is not a number to train with"),
        ("inf", "inf is not a number to train with"),
        ("much", "'much' is not a number"),
        ("-1", "-1 is too small"),
        ("none", "'none' is not a number"),
    ],
)
def test_a_wrong_number_names_node_and_widget(run: Any, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run("DreamBoothSettingsOptim", weight_decay=text)
    assert caught.value.where == "Settings: Optimizer (DreamBooth), Weight decay"
    assert caught.value.do == "Write a number from 0 to 10, or 'as the preset'."
    with pytest.raises(UserError, match="is not a whole number"):
        run("DreamBoothSettingsMethod", rank="1.5")


def test_what_a_preset_turns_on_can_be_turned_off(run: Any) -> None:
    """Also where off is the engine's own default."""
    (memory,) = run("DreamBoothSettingsMemory", gradient_checkpointing="off", quantize="no")
    assert memory.values == {"memory.gradient_checkpointing": False, "memory.quantize": "no"}
    assert run.lines == ["memory.gradient_checkpointing = False", "memory.quantize = no"]


def test_the_presets_values_are_shown(run: Any) -> None:
    run("DreamBoothSettings", preset="object-lora-sd1")
    assert "method.rank = 16" in run.lines and "optim.learning_rate = 0.0001" in run.lines
    assert run.lines[-1].startswith("run.mixed_precision = no: there is no GPU")
    (above,) = run("DreamBoothSettingsRun", mixed_precision="bf16")
    (made,) = run("DreamBoothSettings", preset="object-lora-sd1", settings=above)
    assert made.values["run.mixed_precision"] == "bf16", "a person said so"


def test_errors_are_told_in_the_graphs_words() -> None:
    told = in_words(
        UserError(
            "this SD2 model does not say whether it predicts noise or velocity",
            where="/models/a.safetensors",
            do="Give --prediction_type epsilon, or leave objective.zero_terminal_snr out",
        )
    )
    assert told.line == (
        "/models/a.safetensors: this SD2 model does not say whether it predicts noise or "
        "velocity. Give “Prediction type” (Settings: Base (DreamBooth)) epsilon, or leave "
        "“Zero terminal SNR” (Settings: Objective (DreamBooth)) out"
    )
    told = in_words(UserError("run.steps: 0 is too small", where="command line", do="Allowed: 1"))
    assert told.line == "“Steps” (Settings (DreamBooth)): 0 is too small. Allowed: 1"
    told = in_words(UserError("'x' sets nothing", where="command line", do="Write key=value."))
    assert told.where == "“Overrides” (Settings (DreamBooth))"
    assert in_words(UserError("no steps", where="/tmp/a/settings.json: line 3")).line == "no steps"


def test_widgets_keep_the_names_that_saved_graphs_know(run: Any) -> None:
    (made,) = run("DreamBoothSettingsRun", accumulation="4")
    assert made.values == {"run.gradient_accumulation_steps": 4}


def test_lists_and_empty_numbers(run: Any) -> None:
    (optim,) = run("DreamBoothSettingsOptim", arguments="d0 = 1e-5")
    assert optim.values == {"optim.optimizer_args": {"d0": "1e-5"}}
    (data,) = run("DreamBoothSettingsData", templates="a [prompt]\n\n the [prompt] ", height="64")
    assert data.values == {"data.templates": ["a [prompt]", "the [prompt]"], "data.height": 64}


@pytest.mark.parametrize("line", ["nonsense", "=3", "--out=/tmp/x", "-x=1"])
def test_an_override_must_set_something(run: Any, line: str) -> None:
    with pytest.raises(Exception, match=f"'{line}' sets nothing"):
        run("DreamBoothSettings", overrides=f"method.rank = 3\n{line}")


def test_importing_takes_no_torch_and_little_time() -> None:
    code = (
        "import sys, time; started = time.process_time(); import comfy_nodes; "
        "comfy_nodes.mappings(); "
        "assert not {'torch', 'yaml', 'omegaconf'} & set(sys.modules); "
        "print(time.process_time() - started)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1.0
