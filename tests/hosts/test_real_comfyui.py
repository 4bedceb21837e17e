"""A real ComfyUI with this pack in it, over HTTP and its websocket.

``COMFYUI_DIR`` names one that nobody uses (its custom_nodes, models, input and output are written
to), ``COMFYUI_PYTHON`` its Python. The engine's environment is the one that runs the tests.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy
import pytest

from dreambooth_core.jobs import RunFolder, read_receipt, status
from tests.hosts import comfyui_host
from tests.hosts.comfyui_pack import STAR
from tests.hosts.comfyui_prompts import (
    BASE,
    applied,
    drawing,
    learning,
    loader,
    node,
    pixels,
)
from tests.hosts.comfyui_server import Server, serving

pytestmark = [pytest.mark.host, pytest.mark.timeout(1800)]

RUN = "test-comfyui"


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


def test_a_flow_family_is_trained_in_a_graph(server: Server, name: str) -> None:
    """pocket-flow has Z-Image's shape; the host cannot load it, the samples show what it learns."""
    prompt = learning(name, steps=4, seed=15, sample_every=2)
    prompt["t"]["inputs"]["checkpoint"] = "pocket-flow"
    prompt["s"]["inputs"]["overrides"] += "\nsave.every_steps=2"
    prompt |= {
        "info": node("DreamBoothAdapterInfo", adapter=["t", 3]),
        "last": node("SaveImage", images=["t", 4], filename_prefix="tests/flow"),
        **drawing("left", ["t", 0], ["t", 1], ["t", 2]),
    }
    done = server.run(prompt)
    assert not done.error and "leftimage" not in done.outputs
    picked = {
        "r": node("DreamBoothRuns", run=name, step=2),
        "first": node("SaveImage", images=["r", 1], filename_prefix="tests/flow"),
    }
    first = pixels(*server.pictures(server.run(picked), "first"))
    last = pixels(*server.pictures(done, "last"))
    assert first.std() > 5 and abs(first - last).mean() > 0.1
    assert "ComfyUI loads 112 of 112 keys" in done.outputs["info"]["text"]
    receipt = read_receipt(RunFolder(server.folder / "output" / "dreambooth" / name))
    assert receipt["base"]["family"] == "z_image"


def test_the_same_is_not_trained_twice(server: Server, name: str) -> None:
    """Also where the host's own cache does not know: here by another name for the run."""
    assert server.run(learning(name, steps=2, seed=1)).outputs["t"]["text"] == [
        f"{name}: trained now"
    ]
    again = server.run(learning(f"{name}-other", steps=2, seed=1))
    assert "t" in again.ran
    told = f"{name}: trained before with the same inputs; it keeps its name, and {name}-other is "
    assert again.outputs["t"]["text"] == [f"{told}not made again"]


def test_single_images_and_masks_come_along_links(server: Server, name: str) -> None:
    prompt = learning(name, steps=2, seed=14)
    files = sorted(path.name for path in STAR.glob("*.png"))[:2]
    prompt |= {
        "l": node("LoadImage", image=f"star/{files[0]}"),
        "m": node("SolidMask", value=1.0, width=32, height=32),
        "a": node("DreamBoothAddImage", image=["l", 0], mask=["m", 0]),
        "k": node("LoadImage", image=f"star/{files[1]}"),
        "b": node("DreamBoothAddImage", image=["k", 0], mask=["k", 1], images=["a", 0]),
    }
    prompt["i"]["inputs"] |= {"folder": "(none)", "added": ["b", 0]}
    done = server.run(prompt)
    assert not done.error
    told = done.outputs["i"]["text"]
    assert "2 images taken" in told[0] and told[1] == "  1 of them with a mask"
    assert done.outputs["t"]["text"] == [f"{name}: trained now"]


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
