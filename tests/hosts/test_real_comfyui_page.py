"""A real ComfyUI's page: templates, help, and what nodes show in Chromium."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from tests.helpers.comfy_workflows import to_graph, to_prompt
from tests.hosts import comfyui_page
from tests.hosts.comfyui_examples import EXAMPLES, RUNNABLE, Scale, adapted, example, put_style
from tests.hosts.comfyui_prompts import (
    FIRST_SEED,
    learning,
    node,
    pixels,
)
from tests.hosts.comfyui_server import Server

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]


def test_a_newcomers_first_template_runs_as_it_is(server: Server, name: str) -> None:
    """On a ComfyUI without any model; only shorter here."""
    prompt = to_prompt(example("Try it with pocket"), server.info)
    for one in prompt.values():
        if one["class_type"] == "DreamBoothSettings":
            one["inputs"] |= {"steps": 2, "overrides": "validation.num_inference_steps=2"}
        if one["class_type"] == "DreamBoothTrainLora":
            one["inputs"]["name"] = name
    done = server.run(prompt)
    assert not done.error and not done.refused
    texts = [line for out in done.outputs.values() for line in out.get("text", [])]
    assert any("5 images taken" in line for line in texts)


def test_help_and_translations_are_served(server: Server) -> None:
    chinese = server.get("/api/i18n")["zh"]
    assert "训练" in chinese["nodeDefs"]["DreamBoothTrainLora"]["display_name"]
    templates = server.get("/api/workflow_templates")
    assert set(templates["dreambooth"]) == {path.stem for path in EXAMPLES}
    for page in ("DreamBoothTrainLora.md", "DreamBoothTrainLora/zh.md"):
        assert "# " in server.text(f"/extensions/dreambooth/docs/{page}")


def test_every_example_runs(server: Server, name: str) -> None:
    """With pocket in place of the large model, in the order in which one needs the other."""
    put_style(server.folder / "input")
    scale = Scale(f"{name}-", steps=4, size=64, seed=FIRST_SEED, sampling_steps=2)
    scale = replace(
        scale,
        overrides="validation.num_inference_steps=2\nsave.every_steps=2\nprior.num_inference_steps=2",
    )
    order = sorted(RUNNABLE, key=lambda path: path.stem == "Compare steps")
    for path in order:
        prompt = to_prompt(adapted(example(path.stem), scale), server.info)
        done = server.run(prompt)
        assert not done.error and not done.refused, path.stem
        if path.stem == "Continue a run":
            for one in prompt.values():
                if one["class_type"] == "DreamBoothSettings":
                    one["inputs"]["steps"] = 6
            shown = [out.get("text", []) for out in server.run(prompt).outputs.values()]
            assert any("resumed from step 4" in text for lines in shown for text in lines)


def test_what_nodes_say_is_read_on_them(server: Server, name: str) -> None:
    """Drawn by the page, and passed on as text; neither the saved graph nor the prompt has it."""
    prompt = learning(name, steps=2, seed=11)
    prompt["p"] = node("PreviewAny", source=["t", 6])
    graph = to_graph(server.filled(prompt), server.info)
    with comfyui_page.page(server) as driver:
        comfyui_page.load(driver, graph)
        comfyui_page.run(driver, server)
        shown = driver.execute_script(
            "return app.graph._nodes.map(n => [n.type, (n.widgets || []).filter("
            "w => w.name === 'dreambooth_result').map(w => w.value)])"
        )
        texts = {kind: values for kind, values in shown if values}
        assert texts["DreamBoothTrainLora"] == [f"{name}: trained now"]
        assert "5 images taken" in texts["DreamBoothImages"][0]
        curves = driver.execute_script(
            "return app.graph._nodes.flatMap(n => (n.widgets || []).filter("
            "w => w.name === 'dreambooth_curves').map(w => [n.type, w.value]))"
        )
        assert [kind for kind, _ in curves] == ["DreamBoothTrainLora"]
        assert [step for step, _ in curves[0][1]["loss"]] == [1, 2]
        preview = driver.execute_script(
            "return app.graph._nodes.find(n => n.type === 'PreviewAny').widgets.map(w => w.value)"
        )
        assert f"{name}: trained now" in preview
        visible = driver.execute_script(
            "return [...document.querySelectorAll('textarea')].filter("
            "e => e.readOnly && e.offsetParent && e.value.includes('trained now')).length"
        )
        assert visible >= 1
        saved = driver.execute_script("return JSON.stringify(app.graph.serialize())")
        assert "trained now" not in saved and "5 images taken" not in saved
        asked = driver.execute_async_script(
            "app.graphToPrompt().then(p => arguments[0](JSON.stringify(p.output)))"
        )
        assert "dreambooth_result" not in asked and "dreambooth_curves" not in asked


def test_a_workflow_in_the_page(server: Server, name: str, tmp_path: Path) -> None:
    """Headless Chromium loads an example, runs it and is photographed."""
    scale = Scale(f"{name}-", steps=4, size=64, seed=FIRST_SEED + 9, sampling_steps=4)
    scale = replace(scale, overrides="validation.num_inference_steps=2")
    workflow = adapted(example("Train a subject and generate"), scale)
    with comfyui_page.page(server) as driver:
        comfyui_page.load(driver, workflow)
        missing = driver.execute_script("return app.graph._nodes.filter(n => n.has_errors).length")
        assert missing == 0
        widgets = driver.execute_script(
            "return app.graph._nodes.map(n => [n.id, (n.widgets || []).map(w => w.value)])"
        )
        values = {node["id"]: node["widgets_values"] for node in workflow["nodes"]}
        for number, shown in widgets:
            assert shown[: len(values[number])] == values[number]
        done = comfyui_page.run(driver, server)
        assert done["status"]["status_str"] == "success"
        comfyui_page.photograph(driver, tmp_path / "page.jpg")
        errors = [
            entry["message"]
            for entry in driver.get_log("browser")
            if entry["level"] == "SEVERE" and "dreambooth" in entry["message"].lower()
        ]
        assert not errors
    assert len(numpy.unique(pixels(tmp_path / "page.jpg"))) > 50
