"""A real Forge, and Forge Classic, of which Forge Neo is the next: install, train, list, generate,
refuse, leave.

It refuses reduced models such as pocket, so pictures are made with an untrained model of full size
(2 GB), or the one that ``FORGE_CHECKPOINT`` names.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator

import pytest
from hosts.webui_host import Refused, WebUI, full_size_file, pocket_file

pytestmark = [pytest.mark.host, pytest.mark.slow]

WORD = "a zwx star"


@pytest.fixture(scope="module", params=["FORGE", "CLASSIC"])
def host(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WebUI]:
    made = WebUI(request.param, tmp_path_factory.mktemp("forge"))
    packages = made.packages()
    installed = made.install()
    assert (installed.returncode, installed.stdout, installed.stderr) == (0, "", "")
    pocket_file(made.models / "Stable-diffusion" / "pocket.safetensors")
    full = made.models / "Stable-diffusion" / "full.safetensors"
    if "FORGE_CHECKPOINT" in os.environ:
        shutil.copyfile(os.environ["FORGE_CHECKPOINT"], full)
    else:
        full_size_file(full)
    made.start()
    yield made
    made.stop()
    assert made.packages() == packages


def test_it_is_known_for_what_it_is(host: WebUI) -> None:
    assert "pocket.safetensors" in {one["name"] for one in host.ours("/bases")["bases"]}
    assert host.ours("/base?name=pocket.safetensors")["family"] == "sd1"
    config = host.get("/config")
    assert any("dreambooth" in str(part["props"].get("elem_id")) for part in config["components"])
    labels = {part["props"].get("label") for part in config["components"]}
    assert "The host's model while the GPU trains" in labels  # in the settings


def test_train_and_list(host: WebUI) -> None:
    run = host.train("star", run__steps=4)
    host.until(run, "finished")
    deadline = time.monotonic() + 120
    while not host.ours(f"/status/{run}")["published"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    host.call("/sdapi/v1/refresh-loras", {})
    assert "star" in {lora["name"] for lora in host.get("/sdapi/v1/loras")}
    assert host.ours("/prompt?name=star")["prompt"] == f"{WORD} <lora:star:1>"


def test_generating_is_refused_with_a_word(host: WebUI) -> None:
    run = host.train("long", run__steps=4000)
    deadline = time.monotonic() + 240
    while host.ours(f"/status/{run}")["step"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    away = {"FORGE": "come back with the next image", "CLASSIC": "waits in RAM"}[host.kind]
    try:
        assert away in host.ours(f"/status/{run}")["host"]
        with pytest.raises(Refused, match="DreamBooth is training 'long'"):
            host.draw(WORD)
    finally:
        host.ours(f"/command/{run}", {"verb": "stop"})
    host.until(run, "stopped")


def test_a_fine_tuned_model_is_listed(host: WebUI) -> None:
    run = host.train("tuned", method__kind="full", run__steps=2, optim__learning_rate=1e-5)
    host.until(run, "finished")
    deadline = time.monotonic() + 120
    while not (published := host.ours(f"/status/{run}")["published"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert f"{published[0]}.safetensors" in {one["name"] for one in host.ours("/bases")["bases"]}


def test_what_forge_cannot_load_is_told(host: WebUI) -> None:
    with pytest.raises(Refused, match="the host cannot load it"):
        host.ours("/select", {"name": "pocket.safetensors"})


def test_reload_ui_in_mid_training(host: WebUI) -> None:
    run = host.train("reloaded", run__steps=150)
    host.until(run, "running")
    host.reload_ui()
    assert host.until(run, "finished")["step"] == 150


def test_an_adapter_changes_the_picture_and_weight_0_does_not(host: WebUI) -> None:
    base = str(host.models / "Stable-diffusion" / "full.safetensors")
    run = host.train("big", base__model=base, run__steps=2, optim__learning_rate=3e-3)
    host.until(run, "finished", patience=400)
    host.select("full.safetensors")
    few = {"steps": 2, "cfg_scale": 1}
    plain = host.draw(WORD, **few)
    assert host.draw(WORD, **few).tobytes() == plain.tobytes()
    assert host.draw(f"{WORD} <lora:big:1>", **few).tobytes() != plain.tobytes()
    assert host.draw(f"{WORD} <lora:big:0>", **few).tobytes() == plain.tobytes()


def test_the_hosts_passwords_protect_the_routes(host: WebUI) -> None:
    host.start("--api-auth", "me:secret")
    with pytest.raises(Refused) as error:
        host.ours("/runs")
    assert error.value.code == 401
    assert host.get("/dreambooth/v1/runs", user="me:secret")["runs"]
