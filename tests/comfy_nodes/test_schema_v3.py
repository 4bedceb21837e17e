"""The newer schema's classes, against as much of its API as they use."""

from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

import comfy_nodes
from comfy_nodes.description import CATEGORY, Input, Node, Output, Result


class Recorded:
    """Remembers what it was made of."""

    def __init__(self, *args: Any, **said: Any) -> None:
        self.args, self.said = args, said


def a_type(name: str) -> Any:
    return types.SimpleNamespace(
        Input=type(f"{name}Input", (Recorded,), {"type": name}),
        Output=type(f"{name}Output", (Recorded,), {"type": name}),
    )


@pytest.fixture
def schema(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``schema_v3`` on a stand-in for ``comfy_api.latest``."""
    io = types.SimpleNamespace(
        ComfyNode=type("ComfyNode", (), {"hidden": types.SimpleNamespace(unique_id="7")}),
        NodeOutput=Recorded,
        Schema=Recorded,
        Hidden=types.SimpleNamespace(unique_id="UNIQUE_ID"),
        Custom=a_type,
        Input=object,
        Output=object,
        **{name.title(): a_type(name) for name in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")},
    )
    package, latest = types.ModuleType("comfy_api"), types.ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, object  # type: ignore[attr-defined]
    package.latest = latest  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy_api", package)
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.delitem(sys.modules, "comfy_nodes.schema_v3", raising=False)
    yield importlib.import_module("comfy_nodes.schema_v3")
    sys.modules.pop("comfy_nodes.schema_v3", None)


def test_every_node_is_made(schema: Any, host: Any) -> None:
    made = asyncio.run(asyncio.run(comfy_nodes.comfy_entrypoint()).get_node_list())
    assert [kind.NODE for kind in made] == list(comfy_nodes.NODES)
    for kind in made:
        said = kind.define_schema().said
        node = kind.NODE
        assert (said["node_id"], said["display_name"]) == (node.id, node.label)
        assert said["is_output_node"] == node.is_output
        assert [each.args[0] for each in said["inputs"]] == [each.id for each in node.inputs]
        assert [each.type for each in said["outputs"]] == [each.type for each in node.outputs]
        for each, shown in zip(node.inputs, said["inputs"], strict=True):
            assert shown.type == each.type
            assert shown.said["tooltip"] == each.tooltip
            assert shown.said["optional"] == each.optional
        assert hasattr(kind, "fingerprint_inputs") == (node.fingerprint is not None)


def test_a_node_runs(schema: Any) -> None:
    def run(number: int, more: int | None, node_id: str | None) -> Result:
        return Result((number, more, node_id), ["done"])

    node = Node(
        "X",
        "X",
        "About.",
        (
            Input("number", "INT", "Number", "A number.", 1, 0, 9),
            Input("more", CATEGORY, "More", "A socket.", optional=True),
        ),
        (Output("INT", "OUT", "The same."),),
        run,
        fingerprint=lambda number: number * 2,
    )
    kind = schema.v3_class(node)
    answer = kind.execute(number=3)
    assert answer.args == (3, None, "7")
    assert answer.said == {"ui": {"text": ["done"]}}
    assert kind.fingerprint_inputs(number=3) == 6


def test_which_schema_a_host_has(schema: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.modules["comfy_api.latest"].__spec__ = importlib.machinery.ModuleSpec("x", None)
    assert comfy_nodes.knows_v3()
    monkeypatch.delitem(sys.modules, "comfy_api.latest")
    monkeypatch.delitem(sys.modules, "comfy_api")
    assert not comfy_nodes.knows_v3()
