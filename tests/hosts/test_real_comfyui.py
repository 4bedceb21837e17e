"""A real ComfyUI with this pack in it, over HTTP and its websocket.

``COMFYUI_DIR`` names one that nobody uses (its custom_nodes, models, input and output are written
to), ``COMFYUI_PYTHON`` its Python. The engine's environment is the one that runs the tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from dreambooth_core.families.host_sampling import SCHEDULES, Like
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.jobs import RunFolder, status
from tests.helpers.adapters import weights_for
from tests.helpers.comfy_workflows import to_graph, to_prompt
from tests.helpers.reduced_models import full_parts
from tests.hosts import comfyui_host, comfyui_page
from tests.hosts.comfyui_examples import EXAMPLES, RUNNABLE, Scale, adapted, example, put_style
from tests.hosts.comfyui_pack import CHECKPOINT, install, pocket_states
from tests.hosts.comfyui_prompts import (
    BASE,
    FIRST_SEED,
    applied,
    drawing,
    latent,
    learning,
    loader,
    node,
    pixels,
)
from tests.hosts.comfyui_server import Server, serving

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]

RUN = "test-comfyui"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """ComfyUI with the pack and pocket, started once; nothing is installed meanwhile."""
    host = comfyui_host.folder()
    python = comfyui_host.python(host)
    install(host)
    before = freeze(python)
    with serving(host, env={"DREAMBOOTH_ENV": sys.prefix}) as running:
        yield running
    assert freeze(python) == before


def freeze(python: str) -> str:
    done = subprocess.run(
        [python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.fixture
def name(server: Server, request: pytest.FixtureRequest) -> str:
    """A name for runs that no run of the tests before has used."""
    return f"{RUN}-{request.node.name[5:25].strip('_')}-{time.time_ns():x}"


# --- the pack -----------------------------------------------------------------------------------
def test_the_pack_is_imported_quickly_and_quietly(server: Server) -> None:
    log = server.log.read_text(encoding="utf-8")
    assert re.search(r"[\d.]+ seconds: .*custom_nodes.dreambooth\n", log)
    probe = Path(__file__).with_name("comfyui_import.py")
    command = [comfyui_host.python(server.folder), str(probe)]
    env = comfyui_host.environment()
    told = subprocess.run(
        command, cwd=server.folder, env=env, capture_output=True, text=True, check=True
    )
    assert float(told.stdout.split()[-1]) < 0.3, "CPU seconds"
    about_us = [line for line in log.splitlines() if "dreambooth" in line.lower()]
    assert not [line for line in about_us if re.search("warn|error|fail", line, re.IGNORECASE)]
    assert "IMPORT FAILED" not in log


def test_every_node_is_known_with_its_texts(server: Server) -> None:
    import comfy_nodes

    info = server.get("/object_info")
    for one in comfy_nodes.NODES:
        told = info[one.id]
        assert told["display_name"] == one.label
        assert told["output_name"] == [output.label for output in one.outputs]
        said = {**told["input"].get("required", {}), **told["input"].get("optional", {})}
        assert set(said) == {each.id for each in one.inputs}
        assert all(said[each.id][1]["tooltip"] == each.tooltip for each in one.inputs)


def test_the_older_schema_works_too(name: str) -> None:
    """A host without the newer one gets classes made from the same descriptions."""
    host = comfyui_host.folder()
    door = host / "custom_nodes" / "dreambooth" / "__init__.py"
    text = door.read_text(encoding="utf-8")
    assert "if _nodes.knows_v3():" in text
    door.write_text(text.replace("if _nodes.knows_v3():", "if False:"), encoding="utf-8")
    try:
        with serving(host, env={"DREAMBOOTH_ENV": sys.prefix}) as older:
            prompt = {
                **learning(name, steps=3, seed=7),
                **drawing("older", ["t", 0], ["t", 1], ["t", 2]),
            }
            done = older.run(prompt)
            assert not done.error and done.outputs["t"]["text"] == [f"{name}: trained now"]
            assert "t" in older.run(prompt).cached
            prompt["t"]["inputs"]["checkpoint"] = "nothing.safetensors"
            prompt = {key: one for key, one in prompt.items() if key in "ist"}
            assert older.run(prompt).refused["t"]["errors"][0]["type"] == "value_not_in_list"
    finally:
        door.write_text(text, encoding="utf-8")


def test_without_the_engine_the_command_is_named(name: str, tmp_path: Path) -> None:
    host = comfyui_host.folder()
    with serving(host, env={"DREAMBOOTH_ENV": str(tmp_path / "none")}) as bare:
        done = bare.run(learning(name, steps=2))
        assert "python install.py" in done.error
        assert done.error.startswith("the training engine is not installed yet")
        after = bare.run({**loader(), **drawing("bare", *BASE)})
        assert not after.error


# --- sampling -----------------------------------------------------------------------------------
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm++"])
@pytest.mark.parametrize("schedule", SCHEDULES["comfyui"])
def test_images_like_the_hosts_are_the_hosts(server: Server, sampler: str, schedule: str) -> None:
    prompt = {**loader(), **drawing("like", *BASE)}
    name = "dpmpp_2m" if sampler == "dpm++" else sampler
    prompt["likek"]["inputs"] |= {"sampler_name": name, "scheduler": schedule}
    done = server.run(prompt)
    (saved,) = done.outputs["likeimage"]["images"]
    theirs = pixels(server.folder / "output" / saved["subfolder"] / saved["filename"])
    like = Like("comfyui", sampler, schedule)
    wanted = SamplingSettings(steps=8, guidance=3.0, width=64, height=64, like=like)
    parts = load_base(BaseOptions(model="pocket"))
    (made,) = generate(parts, ["a photo of sks star"], [5], wanted)
    apart = float(abs(theirs - numpy.asarray(made).astype(int)).mean())
    print(f"{sampler} {schedule}: {apart:.3f} of 255")
    assert apart < 1


# --- training -----------------------------------------------------------------------------------
def test_train_and_draw_in_one_prompt(server: Server, name: str) -> None:
    prompt = {
        **learning(name, sample_every=4),
        **loader(),
        **drawing("trained", ["t", 0], ["t", 1], ["t", 2]),
        **drawing("base", *BASE),
        "zero": applied(["t", 3], BASE[0], BASE[1], strength_model=0.0, strength_clip=0.0),
        **drawing("none", ["zero", 0], ["zero", 1], BASE[2]),
        "samples": node("SaveImage", images=["t", 4], filename_prefix="tests/samples"),
        "loss": node("SaveImage", images=["t", 5], filename_prefix="tests/loss"),
    }
    done = server.run(prompt)
    assert not done.error
    base, trained, nothing = (
        pixels(server.pictures(done, f"{p}image")[0]) for p in ("base", "trained", "none")
    )
    assert numpy.array_equal(nothing, base)
    assert abs(trained - base).mean() > 1.0
    shown = [line for which, line in done.texts if which == "t"]
    assert any(re.fullmatch(r"step 8/8, loss [\d.]+, \d+ s left", line) for line in shown)
    assert done.previews >= 3
    assert "5 images taken" in done.outputs["i"]["text"][0]
    again = server.run(prompt)
    assert not again.error and "t" in again.cached and not again.ran

    longer = {**prompt, **learning(name, steps=12, sample_every=4)}
    more = server.run(longer)
    assert more.outputs["t"]["text"] == [f"{name}: resumed from step 8"]


def test_the_same_is_not_trained_twice(server: Server, name: str) -> None:
    """Also where the host's own cache does not know: here by another name for the run."""
    assert server.run(learning(name, steps=2, seed=1)).outputs["t"]["text"] == [
        f"{name}: trained now"
    ]
    again = server.run(learning(f"{name}-other", steps=2, seed=1))
    assert "t" in again.ran
    told = f"{name}: trained before with the same inputs; it keeps its name, and {name}-other is "
    assert again.outputs["t"]["text"] == [f"{told}not made again"]


def test_cancel_from_the_queue(server: Server, name: str) -> None:
    pressed: list[float] = []

    def press(message: dict[str, Any]) -> None:
        if message["type"] != "progress_state" or pressed:
            return
        if message["data"]["nodes"].get("t", {}).get("value", 0) >= 10:
            pressed.append(time.monotonic())
            server.post("/interrupt")

    done = server.run(learning(name, steps=5000, seed=2), press)
    assert done.error == "interrupted"
    assert time.monotonic() - pressed[0] < 10
    folder = RunFolder(server.folder / "output" / "dreambooth" / name)
    assert status(folder).state == "stopped"
    steps = sorted(int(path.name[5:]) for path in folder.checkpoints.iterdir())
    assert steps[-1] == status(folder).step, "its last step was kept"
    assert list(folder.path.glob(f"*-{steps[-1]:06d}.safetensors"))
    after = server.run({**loader(), **drawing("after", *BASE)})
    assert not after.error


def test_cancel_while_samples_are_drawn(server: Server, name: str) -> None:
    """Within one denoising step of hundreds; the step before the samples is kept and told."""
    pressed: list[float] = []
    trained: list[str] = []

    def press(message: dict[str, Any]) -> None:
        if message["type"] != "text":
            return
        line = message["data"]["text"]
        trained.extend([line] if line.startswith("step 4/") else [])
        if trained and line.startswith("making sample images") and not pressed:
            pressed.append(time.monotonic())
            server.post("/interrupt")

    prompt = learning(name, steps=60, seed=3, sample_every=4)
    prompt["s"]["inputs"]["overrides"] = (
        "data.resolution=64\nvalidation.num_inference_steps=300\nsave.every_steps=50"
    )
    done = server.run(prompt, press)
    assert done.error == "interrupted"
    assert time.monotonic() - pressed[0] < 10
    folder = RunFolder(server.folder / "output" / "dreambooth" / name)
    assert status(folder).state == "stopped"
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-000004"]
    assert not list(folder.samples.glob("step-000004*"))
    shown = [line for which, line in done.texts if which == "t"]
    assert shown[-1] == f"{name}: stopped; step 4 of 60 is kept: queue again to resume"


def test_wrong_input_is_one_line(server: Server, name: str) -> None:
    prompt = learning(name, steps=2)
    prompt["s"]["inputs"]["overrides"] = "method.rnak=3"
    done = server.run(prompt)
    assert "rank" in done.error and "Traceback" not in done.error
    prompt["t"]["inputs"]["checkpoint"] = "nothing.safetensors"
    prompt["s"]["inputs"]["overrides"] = ""
    done = server.run(prompt)  # some versions refuse it, others let it run
    assert "t" in done.refused or "no such file among the checkpoints" in done.error


def test_pocket_itself_leaves_out_what_the_host_cannot_load(server: Server, name: str) -> None:
    """What would draw with it is not run, and that is no error."""
    prompt = learning(name, steps=2, seed=4) | drawing("left", ["t", 0], ["t", 1], ["t", 2])
    prompt["t"]["inputs"]["checkpoint"] = "pocket"
    prompt["n"] = node("SaveImage", images=["t", 4], filename_prefix="tests/pocket")
    done = server.run(prompt)
    assert not done.error and server.pictures(done, "n")
    assert "too small for ComfyUI" in done.outputs["t"]["text"][-1]
    assert "leftimage" not in done.outputs


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


# --- adapters -----------------------------------------------------------------------------------
def random_adapter(method: str = "lora", seed: int = 0) -> Adapter:
    """Random weights that fit pocket."""
    modules = {}
    for component, tensors in pocket_states().items():
        for i, (key, weight) in enumerate(sorted(tensors.items())):
            if key.endswith(("to_q.weight", "to_v.weight", "q_proj.weight")):
                name = f"{component}.{key.removesuffix('.weight')}"
                modules[name] = weights_for(weight.float(), method, seed=seed * 1000 + i)
    return Adapter(modules, {}, "sd1")


def put(server: Server, adapter: Adapter, name: str, layout: str = "kohya") -> str:
    """Writes an adapter among the host's; its listed name."""
    loras = server.folder / "models" / "loras"
    ending = "" if layout == "peft" else ".safetensors"
    path = write_adapter(adapter, loras / f"tests/{name}{ending}", layout, dtype=torch.float32)
    path = path if path.is_file() else next(path.rglob("*.safetensors"))
    return path.relative_to(loras).as_posix()


def loaded(listed: str) -> Any:
    return node("DreamBoothLoadAdapter", lora=listed)


def test_merged_is_both(server: Server) -> None:
    files = [put(server, random_adapter(seed=s), f"m{s}") for s in (1, 2)]
    prompt = {
        **loader(),
        "a": loaded(files[0]),
        "b": loaded(files[1]),
        "m": node(
            "DreamBoothMergeAdapters",
            adapter_1=["a", 0],
            adapter_2=["b", 0],
            weight_1=0.7,
            weight_2=-0.4,
        ),
        "x": applied(["a", 0], BASE[0], BASE[1], strength_model=0.7, strength_clip=0.7),
        "y": applied(["b", 0], ["x", 0], ["x", 1], strength_model=-0.4, strength_clip=-0.4),
        "z": applied(["m", 0], BASE[0], BASE[1]),
        **drawing("both", ["y", 0], ["y", 1], BASE[2]),
        **drawing("merged", ["z", 0], ["z", 1], BASE[2]),
        **drawing("base", *BASE),
    }
    done = server.run(prompt)
    assert not done.error
    both, merged, base = (latent(server, done, f"{p}latent") for p in ("both", "merged", "base"))
    assert (both - merged).abs().max() < 1e-3
    assert (both - base).abs().max() > 0.1


def test_merging_real_sizes_takes_less_than_a_second(server: Server) -> None:
    """Two rank-16 adapters of SD1.5's attention, after the first time."""
    shapes = full_parts("sd1").components["unet"].tensors
    names = [
        key.removesuffix(".weight")
        for key in shapes
        if re.search(r"to_(q|k|v|out\.0)\.weight$", key)
    ]
    assert len(names) == 128
    for seed in (1, 2):
        modules = {
            f"unet.{n}": weights_for(shapes[f"{n}.weight"], "lora", rank=16, seed=seed)
            for n in names
        }
        put(server, Adapter(modules, {}, "sd1"), f"big{seed}")
    took = []
    for weight in (0.5, 0.6, 0.7):
        prompt = {
            "a": loaded("tests/big1.safetensors"),
            "b": loaded("tests/big2.safetensors"),
            "m": node(
                "DreamBoothMergeAdapters",
                adapter_1=["a", 0],
                adapter_2=["b", 0],
                weight_1=weight,
            ),
            "n": node("DreamBoothAdapterInfo", adapter=["m", 0]),
        }
        begun: dict[str, float] = {}

        def note(message: dict[str, Any], begun: dict[str, float] = begun) -> None:
            if message["type"] == "executing" and message["data"].get("node"):
                begun[message["data"]["node"]] = time.monotonic()

        done = server.run(prompt, note)
        assert any("ranks: 32 (128)" in line for line in done.outputs["n"]["text"])
        took.append(begun["n"] - begun["m"])
    assert min(took[1:]) < 1.0, took


@pytest.mark.parametrize("layout", ["diffusers", "peft"])
def test_names_that_the_host_passes_over_take_effect(server: Server, layout: str) -> None:
    adapter = random_adapter(seed=3)
    prompt = {
        **loader(),
        "a": loaded(put(server, adapter, f"{layout}-names", layout)),
        "k": loaded(put(server, adapter, "kohya-names")),
        "x": applied(["a", 0], BASE[0], BASE[1]),
        "y": applied(["k", 0], BASE[0], BASE[1]),
        **drawing("converted", ["x", 0], ["x", 1], BASE[2]),
        **drawing("kohya", ["y", 0], ["y", 1], BASE[2]),
        **drawing("base", *BASE),
    }
    done = server.run(prompt)
    assert not done.error
    converted, kohya, base = (
        latent(server, done, f"{p}latent") for p in ("converted", "kohya", "base")
    )
    assert (converted - base).abs().max() > 0.1
    if layout == "diffusers":
        assert (converted - kohya).abs().max() < 1e-3


@pytest.mark.parametrize("method", ["lora", "dora", "loha", "lokr", "oft"])
def test_applied_equals_baked(server: Server, method: str) -> None:
    """Apply in the host against the engine's dense computation, at a strength that is not 1."""
    listed = put(server, random_adapter(method, seed=5), f"bake-{method}")
    made = f"tests-{method}-{time.time_ns():x}"
    bake = {
        "a": loaded(listed),
        "b": node(
            "DreamBoothBakeCheckpoint",
            checkpoint=CHECKPOINT,
            adapter=["a", 0],
            weight=0.7,
            name=made,
            dtype="fp32",
        ),
    }
    assert not server.run(bake).error
    prompt = {
        **loader(),
        "a": loaded(listed),
        "x": applied(["a", 0], BASE[0], BASE[1], strength_model=0.7, strength_clip=0.7),
        **drawing("applied", ["x", 0], ["x", 1], BASE[2]),
        "d": node("CheckpointLoaderSimple", ckpt_name=f"{made}.safetensors"),
        **drawing("baked", ["d", 0], ["d", 1], ["d", 2]),
        **drawing("base", *BASE),
    }
    done = server.run(prompt)
    assert not done.error
    one, other, base = (latent(server, done, f"{p}latent") for p in ("applied", "baked", "base"))
    effect = (one - base).abs().max()
    assert effect > 0.01
    assert (one - other).abs().max() < 0.01 * effect
    (server.folder / "models" / "checkpoints" / f"{made}.safetensors").unlink()


# --- what is shipped beside the nodes -----------------------------------------------------------
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
