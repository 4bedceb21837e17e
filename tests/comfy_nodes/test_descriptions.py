"""Every node as the host sees it, in the older schema; the real host checks the newer one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import comfy_nodes
from comfy_nodes import settings
from comfy_nodes.description import ADAPTER, CONCEPT, SETTINGS, STACK, WIDGETS, Node
from dreambooth_core.config.describe import describe
from dreambooth_core.trainer.config import TrainConfig

ROOT = Path(__file__).parents[2]
HOST_TYPES = ("MODEL", "CLIP", "VAE", "IMAGE", "STRING")
OURS = (ADAPTER, CONCEPT, SETTINGS, STACK)

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
        assert output.type in (*HOST_TYPES, *OURS)


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


def test_settings_chain(run: Any) -> None:
    (method,) = run("DreamBoothSettingsMethod", rank=8, text_rank=4)
    (optim,) = run("DreamBoothSettingsOptim", ema_enabled=True, settings=method)
    (made,) = run("DreamBoothSettings", steps=20, overrides="data.flip=true\n", settings=optim)
    assert made.presets == ("object-lora-sd1",)
    assert made.values == {
        "method.rank": 8,
        "method.text_rank": 4,
        "optim.ema.enabled": True,
        "run.seed": 0,
        "run.steps": 20,
    }
    assert made.texts == ("data.flip=true",)


@pytest.mark.parametrize(("memory", "budget"), [("8gb", "8GB"), ("(none)", None), ("auto", None)])
def test_the_memory_budget(run: Any, memory: str, budget: str | None) -> None:
    """No GPU here, so that auto has nothing to name."""
    (made,) = run("DreamBoothSettings", memory=memory)
    assert made.values.get("memory.budget") == budget


def test_widgets_keep_the_names_that_saved_graphs_know(run: Any) -> None:
    (made,) = run("DreamBoothSettingsRun", accumulation=4)
    assert made.values == {"run.gradient_accumulation_steps": 4}


def test_lists_and_empty_numbers(run: Any) -> None:
    (optim,) = run("DreamBoothSettingsOptim", arguments="d0 = 1e-5")
    assert optim.values == {"optim.optimizer_args": {"d0": "1e-5"}}
    (data,) = run("DreamBoothSettingsData", templates="a [prompt]\n\n the [prompt] ", height=64)
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
