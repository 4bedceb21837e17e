"""What each option of ``run``, ``save``, ``validation``, ``log``, ``publish`` and ``memory`` does
in a real run, as far as no other file shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import huggingface_hub
import pytest
import torch
from helpers.observed import Observed, observe
from helpers.runs import config_for
from PIL import Image

from dreambooth_core.devices import make_precision
from dreambooth_core.errors import UserError
from dreambooth_core.families.host_sampling import Like
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.jobs import RunFolder
from dreambooth_core.jobs.checkpoints import saved_steps
from dreambooth_core.randomness import generator
from dreambooth_core.trainer.results import Results

Once = Callable[..., Observed]


def test_name_and_output_say_where_a_run_lies(once: Once, tmp_path: Path) -> None:
    seen = once(run__name="ball", run__output=tmp_path / "there", run__device="cpu")
    assert seen.folder.path == tmp_path / "there" / "ball"
    assert seen.receipt["result"]["file"] == "ball.safetensors"
    assert seen.receipt["device"] == "cpu"


def test_a_device_that_is_not_here_is_named(once: Once) -> None:
    with pytest.raises(UserError, match=r"run\.device"):
        once(run__device="cuda:99")


def test_the_seed_fixes_every_choice(once: Once, plain: Observed) -> None:
    same, other = once(run__seed=0), once(run__seed=1)
    assert same.told("loss") == plain.told("loss")[:1] != other.told("loss")
    drawn = torch.randn(4, 8, 8, generator=generator("train", 1, 0, 0, "noise"))
    assert torch.equal(other.passes[0].sample.noise[0], drawn)


def test_the_length_of_a_run(once: Once, plain: Observed) -> None:
    """Three pictures: steps as they are said, or epochs of one step with three batches."""
    assert [len(one.captions) for one in plain.passes] == [2, 1, 2]
    assert len(plain.told("loss")) == 3
    changes = {"run__batch_size": 1, "run__gradient_accumulation_steps": 3, "run__epochs": 2}
    seen = once(run__steps="null", **changes)
    assert seen.told("epoch") == [0, 1]
    assert [len(one.captions) for one in seen.passes] == [1] * 6


def test_checkpoints_by_epochs_from_a_step_on(once: Once) -> None:
    """Epochs of two steps end at 2, 4 and 6; the last step has the result."""
    seen = once(run__steps=6, save__every_epochs=1, save__first_step=3)
    assert list(saved_steps(seen.folder.checkpoints)) == [4]


@pytest.mark.parametrize(
    ("layout", "name", "key"),
    [
        ("host", "run.safetensors", "lora_unet_down_blocks_0_attentions_0"),
        ("kohya", "run.safetensors", "lora_unet_down_blocks_0_attentions_0"),
        ("diffusers", "run.safetensors", "unet.down_blocks.0.attentions.0"),
        ("peft", "run/unet/adapter_model.safetensors", "base_model.model.down_blocks.0.attent"),
    ],
)
def test_layouts(layout: str, name: str, key: str, once: Once) -> None:
    seen = once(save__layout=layout, proven=True)
    assert any(each.startswith(key) for each in read_tensors(seen.folder.path / name))


@pytest.mark.parametrize("wanted", ["both", "folder", "file"])
def test_what_a_full_run_leaves_on_the_way(wanted: str, once: Once) -> None:
    changes = {"method__kind": "full", "save__full_steps": wanted, "save__every_steps": 1}
    seen = once(**changes, run__steps=2)
    left = {path.name for path in seen.folder.path.iterdir()}
    assert {"run", "run.safetensors"} <= left
    assert ("run-000001" in left) == (wanted != "file")
    assert ("run-000001.safetensors" in left) == (wanted != "folder")


@pytest.mark.parametrize("also", [True, False])
def test_the_arrangement_of_diffusers_with_a_kohya_file(also: bool, once: Once) -> None:
    seen = once(save__arrangement="diffusers", save__also_kohya=str(also).lower(), proven=True)
    files = {path.name for path in seen.folder.path.glob("*.safetensors")}
    kohya = {"pytorch_lora_weights_kohya.safetensors"} if also else set()
    assert files == {"pytorch_lora_weights.safetensors", *kohya}


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_the_precision_of_results(name: str, once: Once, plain: Observed) -> None:
    def stored(run: Observed) -> set[torch.dtype]:
        return {t.dtype for key, t in run.result.items() if key.endswith(".weight")}

    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[name]
    assert stored(once(save__precision=name, proven=True)) == {dtype}
    assert stored(plain) == {torch.float32}


SETTINGS = SamplingSettings(
    steps=3, guidance=3.0, scheduler="euler", width=80, height=80, negative_prompt="blurry"
)
WATCH: dict[str, Any] = {
    "validation__prompts": "[a ball, a cube]",
    "validation__negative_prompt": "blurry",
    "validation__images": 2,
    "validation__seed": 7,
    "validation__num_inference_steps": 3,
    "validation__guidance_scale": 3,
    "validation__scheduler": "euler",
    "validation__size": 80,
}


def directly(base: Path, settings: SamplingSettings, first: int = 7) -> list[bytes]:
    """Validation images of the untrained base."""
    parts = load_base(BaseOptions(model=str(base)))
    prompts, seeds = ["a ball", "a ball", "a cube", "a cube"], [first, first + 1] * 2
    return [image.tobytes() for image in generate(parts, prompts, seeds, settings)]


def test_validation_images_are_what_the_options_say(base: Path, once: Once) -> None:
    """Those before the first step, which the base makes; then every second step and the last."""
    seen = once(run__steps=3, validation__every_steps=2, **WATCH)
    events = seen.samples()
    assert [event["step"] for event in events] == [0] * 4 + [2] * 4 + [3] * 4
    assert [event["seed"] for event in events[:4]] == [7, 8, 7, 8]
    assert [event["prompt"] for event in events[:4]] == ["a ball"] * 2 + ["a cube"] * 2
    made = [Image.open(seen.folder.path / event["path"]).tobytes() for event in events[:4]]
    assert made == directly(base, SETTINGS)
    for other in (
        {"steps": 2},
        {"guidance": 7.0},
        {"scheduler": "ddim"},
        {"negative_prompt": ""},
        {"width": 64, "height": 64},
    ):
        assert made != directly(base, replace(SETTINGS, **other)), other
    assert made != directly(base, SETTINGS, first=0)


@pytest.mark.parametrize("host", ["a1111", "comfyui"])
def test_validation_images_can_be_a_hosts(host: str, base: Path, once: Once) -> None:
    seen = once(run__steps=1, validation__like=host, **WATCH)
    first = seen.samples()[:4]
    made = [Image.open(seen.folder.path / event["path"]).tobytes() for event in first]
    assert made == directly(base, replace(SETTINGS, like=Like(host, "euler")))
    assert made != directly(base, SETTINGS)


def test_images_that_no_host_makes_are_refused_before_training(once: Once) -> None:
    with pytest.raises(UserError, match=r"validation\.like: unipc .* validation\.scheduler to"):
        once(validation__like="a1111", validation__scheduler="unipc")


def test_a_size_that_no_image_has_is_refused_before_training(once: Once) -> None:
    with pytest.raises(UserError, match=r"validation\.size: 100 .* Try 128"):
        once(validation__prompts="[a ball]", validation__size=100)


def test_validation_images_by_epochs(once: Once) -> None:
    """Epochs of two steps."""
    changes = {"validation__prompts": "[a ball]", "validation__num_inference_steps": 1}
    seen = once(run__steps=5, validation__every_epochs=1, **changes)
    assert [event["step"] for event in seen.samples()] == [0, 2, 4, 5]


def test_progress_every_so_many_steps(once: Once, plain: Observed) -> None:
    changes = {"log__every_steps": 2, "log__tensorboard": "true", "log__folder": "curves"}
    seen = once(run__steps=3, **changes)
    first, second, third = plain.told("loss")
    assert seen.told("step") == [2, 3]
    assert seen.told("loss") == pytest.approx([(first + second) / 2, third])
    assert list((seen.folder.path / "curves").glob("events.out.tfevents.*"))
    assert not list(seen.folder.logs.glob("events*"))


def test_the_project_at_weights_and_biases(once: Once, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []

    def init(**details: Any) -> Any:
        begun.append(details)
        return SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    once(log__wandb="true", log__project="pets")
    assert [(each["project"], each["name"]) for each in begun] == [("pets", "run")]


@pytest.mark.parametrize("private", [True, False])
def test_a_published_result_is_private_or_not(
    private: bool, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, bool]] = []

    class Hub:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> Any:
            made.append((name, private))
            return SimpleNamespace(repo_id=name)

        def upload_file(self, **_: Any) -> None:
            pass

    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    options = {"repository": "me/ball", "licence": "mit", "consent": "nobody had to agree"}
    changes = {f"publish__{name}": value for name, value in options.items()}
    once(**changes, **({} if private else {"publish__private": "false"}))
    assert made == [("me/ball", private)]


@pytest.fixture
def matrix_products() -> Iterator[None]:
    """Puts torch's switches for TF32 back."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("matrix_products")
def test_tf32_is_switched_on_an_nvidia_gpu() -> None:
    for wanted in (True, False):
        make_precision("no", torch.device("cuda"), tf32=wanted)
        assert torch.backends.cuda.matmul.allow_tf32 == wanted
        assert torch.backends.cudnn.allow_tf32 == wanted


def test_tf32_reaches_it(
    base: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def make(name: str, device: torch.device, *, tf32: bool = False) -> Any:
        seen.append(tf32)
        return make_precision(name, device)

    monkeypatch.setattr("dreambooth_core.trainer.train.make_precision", make)
    changes = {"memory__tf32": "true", "run__steps": 1}
    observe(config_for(base, pictures, tmp_path, **changes))
    assert seen == [True]


@pytest.mark.parametrize("name", ["dog", "0"])
def test_no_two_runs_share_a_numbered_folder(tmp_path: Path, name: str) -> None:
    """Only the run that is alone in its folder, as the script's, writes beside it."""
    run = RunFolder.create(tmp_path, name)
    results = cast("Results", SimpleNamespace(folder=run))
    beside = tmp_path / "800"
    assert Results.numbered(results, 800) == (beside if name == "0" else run.path / "800")
    RunFolder(beside).make().config.touch()  # a run of that name is no result
    assert Results.numbered(results, 800) == run.path / "800"
