"""The whole way in a real A1111: install, train, list, generate, tune, reload, kill, leave.

The tests are one story and build upon each other, in their order.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts.webui_host import Refused, WebUI, pocket_file
from PIL import Image, ImageChops, ImageStat

from dreambooth_core.families.components import Components
from dreambooth_core.families.host_sampling import Like
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate

pytestmark = [pytest.mark.host, pytest.mark.slow]

WORD = "a zwx star"


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.tobytes() == other.tobytes()


def contrast(image: Image.Image) -> float:
    """0 for one colour: what NaN looks like."""
    return sum(ImageStat.Stat(image).stddev)


def distance(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUI]:
    made = WebUI("A1111", tmp_path_factory.mktemp("a1111"))
    packages = made.packages()
    began = time.monotonic()
    installed = made.install()
    assert (installed.returncode, installed.stdout, installed.stderr) == (0, "", "")
    assert time.monotonic() - began < 10
    checkpoints = made.models / "Stable-diffusion"
    pocket_file(checkpoints / "pocket.safetensors")
    pocket_file(checkpoints / "pocket-half.ckpt", "--half")
    pocket_file(checkpoints / "pocket-float.safetensors", "--float")
    made.start()
    yield made
    made.stop()
    assert made.packages() == packages  # the host's Python is as it was


@pytest.fixture(scope="module")
def pocket() -> Components:
    """The same base, in this process."""
    return load_base(BaseOptions(model="pocket"))


@pytest.fixture(scope="module")
def base(host: WebUI) -> Image.Image:
    """What the untrained base draws."""
    host.ours("/select", {"name": "pocket.safetensors"})
    return host.draw(WORD)


def test_the_tab_and_the_settings_are_there(host: WebUI) -> None:
    assert "Traceback" not in host.told()
    parts = [part["props"] for part in host.get("/config")["components"]]
    assert any(str(part.get("elem_id")).startswith("dreambooth_") for part in parts)
    assert "The host's model while the GPU trains" in {part.get("label") for part in parts}
    assert host.ours("/environment")["ready"]


def test_pocket_loads_in_every_form(host: WebUI, base: Image.Image) -> None:
    assert contrast(base) > 30
    assert same(host.draw(WORD), base)
    assert not same(host.draw("a red circle"), base)
    for name in ("pocket-half.ckpt", "pocket-float.safetensors"):
        host.ours("/select", {"name": name})
        assert distance(host.draw(WORD), base) < 3  # rounding alone
    host.ours("/select", {"name": "pocket.safetensors"})
    info = host.ours("/base?name=pocket.safetensors")
    assert (info["family"], info["prediction_type"]) == ("sd1", "epsilon")
    assert [one["name"] for one in host.ours("/bases")["bases"]][-2:] == ["pocket", "pocket-flow"]


@pytest.mark.parametrize(
    ("name", "ours", "schedule"),
    [
        ("DDIM", "ddim", "Automatic"),
        ("Euler", "euler", "Automatic"),
        ("Euler", "euler", "sgm_uniform"),
        ("DPM++ 2M", "dpm++", "Automatic"),
        ("DPM++ 2M", "dpm++", "exponential"),
    ],
)
@pytest.mark.parametrize("skip", [1, 2])
def test_images_like_the_hosts_are_the_hosts(
    host: WebUI, pocket: Components, name: str, ours: str, schedule: str, skip: int
) -> None:
    # Written small, as its API lists it, "automatic" is uniform for every sampler.
    asked = {"sampler_name": name, "scheduler": schedule}
    settings = {"override_settings": {"CLIP_stop_at_last_layers": skip}}
    theirs = host.draw(WORD, 7, **asked, **settings)
    like = Like("a1111", ours, schedule.lower())
    wanted = SamplingSettings(steps=12, guidance=3.0, width=64, height=64, like=like)
    pocket.clip_skip = skip
    (made,) = generate(pocket, [WORD], [7], wanted)
    apart = distance(theirs, made) / 3  # of three channels
    print(f"{name} {schedule}, clip skip {skip}: {apart:.3f} of 255")
    assert apart < 1


def test_a_wrong_value_is_marked_before_anything_starts(host: WebUI) -> None:
    report = host.ours("/check", {"values": {"run.batch_size": 0, "optim.lr": 1}})
    assert [problem["key"] for problem in report["problems"]] == ["run.batch_size", "optim.lr"]


def test_a_trained_adapter_can_be_used_at_once(host: WebUI, base: Image.Image) -> None:
    validation = {"validation__prompts": [WORD], "validation__every_steps": 4}
    run = host.train("star", **validation, validation__num_inference_steps=5, save__every_steps=4)
    status = host.until_published(run)
    assert (status["step"], status["published"]) == (8, ["star"])
    assert len(status["samples"]) >= 2
    host.call("/sdapi/v1/refresh-loras", {})
    assert "star" in {lora["name"] for lora in host.get("/sdapi/v1/loras")}
    assert host.ours("/prompt?name=star")["prompt"] == f"{WORD} <lora:star:1>"
    assert not same(host.draw(f"{WORD} <lora:star:1>"), base)
    assert same(host.draw(f"{WORD} <lora:star:0>"), base)
    beside = host.models / "Lora" / "star.json"
    assert json.loads(beside.read_text())["activation text"] == WORD
    with Image.open(beside.with_suffix(".png")) as preview:
        assert preview.size == (64, 64)


def test_a_saved_step_is_another_adapter(host: WebUI) -> None:
    assert [one["step"] for one in host.ours("/runs/star/saved")["saved"]] == [4, 8]
    made = host.ours("/runs/star/publish", {"step": 4})
    assert made["name"] == "star-000004"
    first, last = host.draw(f"{WORD} {made['prompt']}"), host.draw(f"{WORD} <lora:star:1>")
    assert not same(first, last)
    again = host.ours("/runs/star/publish", {"step": 4})
    assert again == made


def test_generating_is_refused_with_a_word_and_possible_again(
    host: WebUI, base: Image.Image
) -> None:
    run = host.train("long", run__steps=4000)
    deadline = time.monotonic() + 240
    while host.ours(f"/status/{run}")["step"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "waits in RAM" in host.ours(f"/status/{run}")["host"]
    with pytest.raises(Refused, match="DreamBooth is training 'long'"):
        host.draw(WORD)
    host.ours(f"/command/{run}", {"verb": "stop_after_step"})
    assert host.until(run, "stopped")["step"] < 4000
    host.until_published(run)
    assert same(host.draw(WORD), base)


@pytest.mark.parametrize("release", ["unload", "keep"])
def test_the_model_comes_back_however_it_went(host: WebUI, base: Image.Image, release: str) -> None:
    host.call("/sdapi/v1/options", {"dreambooth_release": release})
    run = host.train(f"release-{release}", run__steps=3)
    host.until_published(run)
    assert same(host.draw(WORD), base)
    host.call("/sdapi/v1/options", {"dreambooth_release": "ram"})


def test_generating_may_be_allowed(host: WebUI, base: Image.Image) -> None:
    host.call("/sdapi/v1/options", {"dreambooth_generate": "allow"})
    run = host.train("allowed", run__steps=4000)
    host.until(run, "running")
    assert same(host.draw(WORD), base)
    host.ours(f"/command/{run}", {"verb": "kill"})
    host.until(run, "stopped", "lost")
    host.call("/sdapi/v1/options", {"dreambooth_generate": "refuse"})


def test_every_method_loads_and_several_together(host: WebUI, base: Image.Image) -> None:
    kinds = ("lora", "dora", "loha", "lokr", "oft")
    runs = [host.train(f"m-{kind}", method__kind=kind) for kind in kinds]  # they queue up
    states = [host.ours(f"/status/{run}")["state"] for run in runs]
    assert states.count("running") <= 1
    pictures = {}
    for kind, run in zip(kinds, runs, strict=True):
        host.until_published(run) if kind == kinds[-1] else host.until(run, "finished")
    for kind, run in zip(kinds, runs, strict=True):
        pictures[kind] = host.draw(f"{WORD} <lora:{run}:1>")
        assert not same(pictures[kind], base), kind
        assert contrast(pictures[kind]) > 20, kind
        assert same(host.draw(f"{WORD} <lora:{run}:0>"), base), kind
    both = host.draw(f"{WORD} <lora:m-lora:0.7> <lora:m-loha:0.7>")
    assert not any(same(both, one) for one in pictures.values())
    assert same(host.draw(WORD), base)


def test_a_learned_token_and_one_with_an_adapter(host: WebUI) -> None:
    untrained = host.draw(WORD)
    options = {"method__placeholder_token": "zwx", "optim__embedding_lr": 0.1}
    run = host.train("token", method__kind="textual_inversion", **options)
    host.until_published(run)
    assert (host.data / "embeddings" / "zwx.safetensors").is_file()
    learned = host.draw(WORD)
    assert not same(learned, untrained)
    run = host.train("pivot", method__kind="pivotal", **options)
    host.until_published(run)
    prompt = host.ours("/prompt?name=pivot")["prompt"]
    assert prompt == "a zwx-2 star <lora:pivot:1>"
    assert not same(host.draw(prompt), learned)
    for name in ("zwx", "zwx-2"):
        (host.data / "embeddings" / f"{name}.safetensors").unlink()
    assert same(host.draw(WORD), untrained)


def test_a_fine_tuned_model_can_be_selected(host: WebUI, base: Image.Image) -> None:
    run = host.train("tuned", method__kind="full", run__steps=4, optim__learning_rate=1e-4)
    status = host.until_published(run)
    (name,) = status["published"]
    assert f"{name}.safetensors" in {one["name"] for one in host.ours("/bases")["bases"]}
    host.ours("/select", {"name": f"{name}.safetensors"})
    tuned = host.draw(WORD)
    assert contrast(tuned) > 20 and not same(tuned, base)
    host.ours("/runs/tuned", method="DELETE")  # what was published stays usable
    host.ours("/select", {"name": "pocket.safetensors"})
    assert same(host.draw(WORD), base)
    host.ours("/select", {"name": f"{name}.safetensors"})
    assert same(host.draw(WORD), tuned)
    host.ours("/select", {"name": "pocket.safetensors"})


def test_reload_ui_in_mid_training(host: WebUI, base: Image.Image) -> None:
    run = host.train("reloaded", run__steps=150)
    host.until(run, "running")
    host.reload_ui()
    assert host.ours("/runs")["runs"][0]["name"] == run
    assert host.until_published(run)["step"] == 150
    assert same(host.draw(WORD), base)
    assert not same(host.draw(f"{WORD} <lora:{run}:1>"), base)


def test_a_killed_worker_is_lost_and_the_host_whole(host: WebUI, base: Image.Image) -> None:
    run = host.train("killed", run__steps=4000, save__every_steps=5)
    deadline = time.monotonic() + 240
    while host.ours(f"/status/{run}")["step"] < 6:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(host.holder(run), signal.SIGKILL)
    status = host.until(run, "lost")
    assert "killed" in status["message"]
    time.sleep(3)
    assert same(host.draw(WORD), base)
    host.ours(f"/runs/{run}/resume", {})
    while (status := host.ours(f"/status/{run}"))["stage"] != "train" or not status["step"] > 6:
        assert time.monotonic() < deadline + 60
        time.sleep(0.2)
    host.ours(f"/command/{run}", {"verb": "stop"})
    host.until(run, "stopped")


def test_tools(host: WebUI, base: Image.Image) -> None:
    told = host.ours("/inspect", {"file": str(host.models / "Lora" / "star.safetensors")})
    assert (told["kind"], told["layout"]) == ("adapter", "kohya")
    parts = [{"file": "star", "weight": 0.5}, {"file": "m-lora.safetensors", "weight": 0.5}]
    wanted = [
        ("merge", {"adapters": parts, "out": "both"}),
        ("resize", {"source": "star.safetensors", "rank": 2, "target": "small"}),
        (
            "bake",
            {
                "base": "pocket.safetensors",
                "adapters": [{"file": "star.safetensors", "weight": 0.8}],
                "out": "baked",
            },
        ),
        ("convert", {"source": "pocket.safetensors", "target": "again.ckpt", "half": True}),
    ]
    for tool, values in wanted:
        number = host.ours(f"/{tool}", {"values": values})["task"]
        deadline = time.monotonic() + 240
        while (task := host.ours(f"/tasks/{number}"))["state"] in ("waiting", "running"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert task["state"] == "done", task
        assert all(Path(file).exists() for file in task["files"])
    merged = host.draw(f"{WORD} <lora:both:1>")
    assert not same(merged, base)
    host.ours("/select", {"name": "baked.safetensors"})
    assert distance(host.draw(WORD), host.draw(WORD)) == 0
    assert not same(host.draw(WORD), base)
    host.ours("/select", {"name": "again.ckpt"})
    assert distance(host.draw(WORD), base) < 3
    host.ours("/select", {"name": "pocket.safetensors"})


def test_files_elsewhere_are_refused(host: WebUI, tmp_path: Path) -> None:
    for folder in (str(tmp_path), "../../../../etc", "/etc", "//server/share"):
        with pytest.raises(Refused, match="not in a folder that may be used") as refused:
            host.ours(f"/pictures?folder={folder}")
        assert refused.value.code == 400
        with pytest.raises(Refused, match="not in a folder"):
            host.ours("/start", {"values": {"concepts[0].images": folder}})


def test_the_hosts_passwords_protect_the_routes(host: WebUI) -> None:
    host.start("--api-auth", "me:secret", "--gradio-auth", "you:hidden")
    for user, code in (("", 401), ("me:wrong", 401), ("me:secret", 0), ("you:hidden", 0)):
        try:
            host.get("/dreambooth/v1/runs", user=user)
            found = 0
        except Refused as refused:
            found = refused.code
        assert found == code, user
    with pytest.raises(Refused) as error:
        host.call("/dreambooth/v1/start", {"values": {}})
    assert error.value.code == 401
