"""What cannot run is refused in the same words by ``check`` and ``train``, before anything is
written."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.runs import config_for, folder_for, training_of

from dreambooth_core.commands.main import main
from dreambooth_core.config.loading import dump, load
from dreambooth_core.errors import UserError
from dreambooth_core.families import loading
from dreambooth_core.families.stable_diffusion.family import UNetFamily
from dreambooth_core.memory.needs import Planner
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer import decide as module
from dreambooth_core.trainer.decide import decide
from dreambooth_core.trainer.run import run

Changes = dict[str, Any]

TOKEN: Changes = {"method__kind": "textual_inversion"}
PRIOR: Changes = {"prior__enabled": "true"}
RULES: Changes = {"optim__lr_scheduler": "piecewise_constant"}

REFUSED: dict[str, tuple[Changes, str]] = {
    "nothing trained": ({"method__train_denoiser": "false"}, "method.train_denoiser"),
    "timesteps turned round": (
        {"objective__min_timestep": 900, "objective__max_timestep": 100},
        "objective.min_timestep",
    ),
    "no step rules": (RULES, "optim.step_rules"),
    "step rules without an end": (
        {**RULES, "optim__step_rules": "1:10"},
        "optim.step_rules",
    ),
    "an unknown argument": ({"optim__optimizer_args": "{amsgard: 1}"}, "optim.optimizer_args"),
    "an argument that is not true or false": (
        {"optim__optimizer_args": "{maximize: x}"},
        "optim.optimizer_args",
    ),
    "an argument that is no number": (
        {
            "optim__optimizer": "prodigy",
            "optim__learning_rate": 1,
            "optim__optimizer_args": "{d_coef: NaN}",
        },
        "optim.optimizer_args",
    ),
    "an argument of another type": (
        {"optim__optimizer_args": "{amsgrad: x}"},
        "optim.optimizer_args",
    ),
    "an option that the optimizer lacks": (
        {"optim__optimizer": "sgd", "optim__beta2": 0.9},
        "optim.beta2",
    ),
    "an optimizer that is not installed": (
        {"optim__optimizer": "dadapt_adam", "optim__learning_rate": 1},
        "optim.optimizer",
    ),
    "wandb is not installed": ({"log__wandb": "true"}, "log.wandb"),
    "tensorboard is not installed": ({"log__tensorboard": "true"}, "log.tensorboard"),
    "4 bits without bitsandbytes": ({"memory__quantize": "nf4"}, "memory.quantize"),
    "an attention that is not installed": ({"memory__attention": "xformers"}, "memory.attention"),
    "compiling without a compiler": ({"memory__compile": "true"}, "memory.compile"),
    "a token in no caption": (
        {**TOKEN, "method__placeholder_token": "xyzzy"},
        "method.placeholder_token",
    ),
    "a token of two words": (
        {**TOKEN, "method__placeholder_token": "two words"},
        "method.placeholder_token",
    ),
    "a token in the vocabulary": (
        {**TOKEN, "method__placeholder_token": "photo"},
        "method.placeholder_token",
    ),
    "a layout without a place": (
        {"method__kind": "loha", "save__arrangement": "diffusers"},
        "save.arrangement",
    ),
    "fp16 on a CPU": ({"run__mixed_precision": "fp16"}, "run.mixed_precision"),
    "class images in fp16 on a CPU": ({**PRIOR, "prior__precision": "fp16"}, "prior.precision"),
    "an unknown scheduler": ({**PRIOR, "prior__scheduler": "fast"}, "prior.scheduler"),
    "zero terminal SNR on epsilon": (
        {"objective__zero_terminal_snr": "true"},
        "objective.zero_terminal_snr",
    ),
    "validation images between the latents": (
        {"validation__prompts": "[x]", "validation__size": 60},
        "validation.size",
    ),
    "a resolution between the latents": ({"data__resolution": 100}, "data.resolution"),
    "a bucket step between the latents": (
        {"data__crop": "bucket", "data__bucket_reso_steps": 12},
        "data.bucket_reso_steps",
    ),
    "a device that is not there": ({"run__device": "cuda:7"}, "run.device"),
    "a device that is none": ({"run__device": "cpu:x"}, "run.device"),
    "no saved step": ({"run__resume": "/etc"}, "run.resume"),
    "captions asked for and absent": ({"data__captions": "files"}, "concepts[0].images"),
    "no class prompt": (
        {**PRIOR, "concepts[0]__class_prompt": ""},
        "concepts[0].class_prompt",
    ),
    "no images": ({"concepts[0]__images": ""}, "concepts[0].images"),
    "a publication without a licence": (
        {"publish__repository": "me/it", "publish__consent": "mine"},
        "publish.licence",
    ),
    "no such base": ({"base__model": "nowhere.safetensors"}, "base.model: nowhere.safetensors"),
    "no such autoencoder": ({"base__vae": "nowhere"}, "base.vae: nowhere"),
}


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no optional package and no compiler were installed."""
    find = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> Any:
        return None if name in ("wandb", "tensorboard") else find(name, package)

    def missing(*_: object) -> None:
        raise UserError("a 4-bit base needs bitsandbytes", where="memory.quantize")

    monkeypatch.setattr(importlib.util, "find_spec", found)
    for name in ("wandb", "tensorboard"):  # another test may have imported them
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr("dreambooth_core.methods.quantized._bitsandbytes", missing)
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: None)
    monkeypatch.setenv("HF_TOKEN", "hf_none")


Make = Callable[..., TrainConfig]


@pytest.fixture
def make(base: Path, pictures: Path, tmp_path: Path) -> Make:
    """A configuration on the CPU."""

    def config(**changes: Any) -> TrainConfig:
        return config_for(base, pictures, tmp_path / "runs", **{"run__device": "cpu", **changes})

    return config


@pytest.mark.usefixtures("bare_machine")
@pytest.mark.skipif(torch.cuda.is_available(), reason="refused is what lacks a GPU")
@pytest.mark.parametrize("name", REFUSED)
def test_check_and_train_refuse_in_the_same_words(
    name: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, where = REFUSED[name]
    config = make(**changes)
    file = tmp_path / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    said = []
    for command in ("check", "train"):
        assert main([command, str(file), "--json"]) == 2, command
        said.append(json.loads(capsys.readouterr().out)["error"])
    assert said[0] == said[1]
    assert said[0]["where"] == where
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError) as caught:
        run(folder_for(config))  # a folder that others prepared
    assert caught.value.as_dict() == said[0]


LET_THROUGH: dict[str, Changes] = {
    "lora": {},
    "full": {"method__kind": "full", "method__train_text_encoder": "true"},
    "a token": {**TOKEN, "method__placeholder_token": "sks", "method__initializer_token": "dog"},
    "arguments": {
        "optim__optimizer": "prodigy",
        "optim__optimizer_args": "{d_coef: 2}",
        "optim__learning_rate": 1,
    },
    "class images": {**PRIOR, "prior__scheduler": "euler"},
    "step rules": {**RULES, "optim__step_rules": "1:2,0.5"},
}


@pytest.mark.parametrize("name", LET_THROUGH)
def test_what_can_run_is_let_through_and_no_weight_is_read(name: str, make: Make) -> None:
    found = decide(make(**LET_THROUGH[name]))
    assert found.steps == 4
    assert sum(found.trainable.values()) > 0
    assert found.parts.fingerprint == ""
    assert all(p.is_meta for p in found.parts.denoiser.parameters())


def test_what_a_device_decides_is_left_to_the_process_that_sees_it(make: Make) -> None:
    for changes in ({"run__device": "cuda"}, {"run__mixed_precision": "fp16"}):
        assert decide(make(**changes), elsewhere=True).steps == 4


def test_a_decision_is_made_once(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``train`` hands it on to the run: no folder is looked through twice."""
    looked: list[object] = []
    gather = module.gather

    def counted(*args: Any, **more: Any) -> Any:
        looked.append(args)
        return gather(*args, **more)

    monkeypatch.setattr(module, "gather", counted)
    file = tmp_path / "config.yaml"
    file.write_text(dump(make(run__steps=1)), encoding="utf-8")
    assert main(["train", str(file)]) == 0
    assert len(looked) == 1


@pytest.mark.parametrize(("kind", "times"), [("lora", 1), ("textual_inversion", 2)])
def test_tokenizers_are_read_once_unless_a_token_was_added(
    make: Make, monkeypatch: pytest.MonkeyPatch, kind: str, times: int
) -> None:
    read: list[None] = []
    original = UNetFamily.load_tokenizers

    def counted(*args: Any) -> list[Any]:
        read.append(None)
        return original(*args)

    monkeypatch.setattr(UNetFamily, "load_tokenizers", counted)
    monkeypatch.setattr("helpers.runs._tried", {})  # by no test before
    config = make(method__kind=kind)
    training = training_of(config, folder_for(config))
    assert len(read) == times
    added = len(training.parts.tokenizers[0]) - len(loading.load_base(config.base).tokenizers[0])
    assert (added > 0) == (kind != "lora")


def test_images_are_as_large_as_the_base_was_made_for(
    base: Path, pictures: Path, tmp_path: Path
) -> None:
    overrides = [
        f"concepts=[{{images: '{pictures.as_posix()}', instance_prompt: a sks ball}}]",
        f"run.output={tmp_path.as_posix()}",
        "run.mixed_precision=no",
    ]
    config = load(TrainConfig, preset="object-lora-sd1", overrides=overrides)
    assert config.base.model == "pocket"
    found = decide(config)
    assert found.config.data.resolution == 128
    assert {max(entry.size) for entry in found.items.entries} == {128}
    assert Planner(config).config.data.largest_size() == (128, 128)
    config.data.resolution = 192
    assert decide(config).config.data.resolution == 192
    # What was in effect is written down.
    line = ["train", "--prepare", *overrides, f"base.model={base.as_posix()}"]
    assert main([*line, "log.tensorboard=false"]) == 0
    (written,) = tmp_path.glob("*/config.yaml")
    assert load(TrainConfig, files=[written]).data.resolution == 64
