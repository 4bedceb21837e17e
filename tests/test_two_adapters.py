"""peft's tutorial with two adapters of pocket: switch, weigh, merge to a third, unload.

What diffusers and peft make of our files is what the engine makes of them.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers.runs import config_for, train
from peft import PeftModel
from torch import Tensor

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.commands.main import main
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.jobs import read_receipt
from tools.pocket import stickers, subject

WEIGHTS = (1.0, 1.05)


class Trained(NamedTuple):
    """The two adapters' files."""

    dog: Path
    crochet: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A subject and a style, trained just long enough to show."""
    root = tmp_path_factory.mktemp("two")
    subject.write(root / "star")
    stickers.write(root / "stickers")
    files = []
    for name, pictures in (("dog", "star"), ("crochet", "stickers")):
        config = config_for(
            embedded_folder(),
            root / pictures,
            root,
            run__name=name,
            run__steps=5,
            run__seed=len(files),
            optim__learning_rate=1e-2,
            method__target_modules="attention",
        )
        folder = train(config)
        files.append(folder.path / read_receipt(folder)["result"]["file"])
    return Trained(*files)


@pytest.fixture
def pipe() -> Any:
    """The tutorial's pipeline."""
    made = StableDiffusionPipeline.from_pretrained(embedded_folder())
    made.set_progress_bar_config(disable=True)
    yield made
    del made
    gc.collect()


def answer(unet: Any) -> Tensor:
    """The UNet's answer to a fixed question."""
    generator = torch.Generator().manual_seed(3)
    noisy = torch.randn(1, 4, 8, 8, generator=generator)
    words = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        found: Tensor = unet(noisy, torch.tensor([400]), words).sample
    return found


def ours(unet: Any, weights: dict[Path, float]) -> Tensor:
    """The same with the engine's own stack, which leaves the base as it was."""
    stack = AdapterStack({"unet": unet})
    for path, weight in weights.items():
        stack.load(path.stem, read_adapter(path), weight)
    found = answer(unet)
    stack.clear()
    return found


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def test_names_switch_and_weigh_in_diffusers(trained: Trained, pipe: Any) -> None:
    plain = answer(pipe.unet)
    expected = {
        "dog": ours(pipe.unet, {trained.dog: 1.0}),
        "crochet": ours(pipe.unet, {trained.crochet: 1.0}),
        "both": ours(pipe.unet, dict(zip(trained, WEIGHTS, strict=True))),
    }
    pipe.load_lora_weights(trained.dog, adapter_name="dog")
    pipe.load_lora_weights(trained.crochet, adapter_name="crochet")
    found = {}
    for name in ("dog", "crochet"):
        pipe.set_adapters(name)
        found[name] = answer(pipe.unet)
    pipe.set_adapters(["dog", "crochet"], list(WEIGHTS))
    found["both"] = answer(pipe.unet)

    for name, output in found.items():
        assert differ(output, expected[name]) < 1e-4, name
        assert differ(output, plain) > 1e-3, name
    assert differ(found["dog"], found["crochet"]) > 1e-3
    assert differ(found["both"], found["dog"]) > 1e-3
    pipe.unload_lora_weights()
    assert torch.equal(answer(pipe.unet), plain)


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_crochet_dog_is_what_peft_makes_of_it(
    trained: Trained, pipe: Any, tmp_path: Path, method: str
) -> None:
    merged = tmp_path / "crochet_dog.safetensors"
    weighted = [f"{path}:{weight}" for path, weight in zip(trained, WEIGHTS, strict=True)]
    assert main(["merge", *weighted, "--method", method, "--out", str(merged)]) == 0
    expected = ours(pipe.unet, {merged: 1.0})
    if method == "cat":
        both = ours(pipe.unet, dict(zip(trained, WEIGHTS, strict=True)))
        assert differ(expected, both) < 1e-4

    for name, path in trained._asdict().items():
        folder = tmp_path / name
        assert main(["convert", str(path), str(folder), "--layout", "peft"]) == 0
        if name == "dog":
            unet = PeftModel.from_pretrained(pipe.unet, folder / "unet", adapter_name=name)
        else:
            unet.load_adapter(folder / "unet", adapter_name=name)
    names = list(trained._fields)
    unet.add_weighted_adapter(names, list(WEIGHTS), "crochet_dog", combination_type=method)
    unet.set_adapter("crochet_dog")
    assert differ(answer(unet), expected) < 1e-4


def test_sample_takes_both(trained: Trained, tmp_path: Path) -> None:
    def pictures(name: str, *adapters: str) -> bytes:
        folder = tmp_path / name
        named = [part for adapter in adapters for part in ("--adapter", adapter)]
        asked = ["a photo of a star", "--steps", "3", "--width", "64", "--height", "64"]
        assert main(["sample", *asked, *named, "--seed", "5", "--out", str(folder)]) == 0
        (picture,) = folder.glob("*.png")
        return picture.read_bytes()

    one = pictures("one", f"{trained.dog}:0.8")
    both = pictures("both", f"{trained.dog}:0.8", f"{trained.crochet}:0.5")
    switched_off = pictures("off", f"{trained.dog}:0.8", f"{trained.crochet}:0")
    assert one != both
    assert one == switched_off
