"""What other packages bring through entry points works everywhere: the measure of the house."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from helpers.flow_tokenizers import clip
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_core.commands.main import main
from dreambooth_core.config.loading import dump
from dreambooth_core.families.components import Components
from dreambooth_core.families.names import NAMES
from dreambooth_core.families.registry import FAMILIES
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.methods.table import METHODS
from dreambooth_core.optim.table import OPTIMIZERS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MOST_LINES = 150
ENTRIES = """
[dreambooth.families]
toy = toy_plugin:TOY
[dreambooth.names]
toy = toy_plugin:NAMES
[dreambooth.methods]
rslora = toy_plugin:RSLORA
[dreambooth.optimizers]
sign = toy_plugin:SIGN
"""


def test_the_plug_in_is_short() -> None:
    assert len((HERE / "toy_plugin.py").read_text().splitlines()) <= MOST_LINES


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The plug-in as an installed package."""
    site = tmp_path_factory.mktemp("site")
    (site / "toy_plugin.py").write_text((HERE / "toy_plugin.py").read_text())
    info = site / "toy_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRIES)
    sys.path.insert(0, str(site))
    for registry in (FAMILIES, NAMES, METHODS, OPTIMIZERS):
        registry.forget()
    yield
    sys.path.remove(str(site))
    sys.modules.pop("toy_plugin", None)
    for registry in (FAMILIES, NAMES, METHODS, OPTIMIZERS):
        registry.forget()


@pytest.fixture(scope="module")
def base(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the plug-in's family."""
    family = FAMILIES["toy"]
    tokenizer = clip()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = Components(
            family=family,
            denoiser=sys.modules["toy_plugin"].ToyDenoiser(),
            vae=AutoencoderKL(
                block_out_channels=(32,) * 4,
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=1,
                latent_channels=4,
            ),
            text_encoders=[
                CLIPTextModel(
                    CLIPTextConfig(
                        vocab_size=len(tokenizer),
                        hidden_size=32,
                        intermediate_size=32,
                        num_hidden_layers=1,
                        num_attention_heads=2,
                    )
                )
            ],
            tokenizers=[tokenizer],
            scheduler_config={"_class_name": "FlowMatchEulerDiscreteScheduler"},
            prediction_type="flow",
            source="",
            fingerprint="",
        )
    folder = tmp_path_factory.mktemp("base") / "toy"
    family.write_folder(parts, folder, torch.float32, {})
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a run with the plug-in's family, method and optimizer."""
    root = tmp_path_factory.mktemp("plugin")
    config = config_for(
        base,
        draw_pictures(root / "images", 2),
        root / "runs",
        method__kind="rslora",
        optim__optimizer="sign",
        validation__prompts="[a photo of sks ball]",
        validation__num_inference_steps=2,
    )
    folder = train(config, proven=True)
    receipt = json.loads((folder.path / "receipt.json").read_text())
    assert receipt["base"]["family"] == "toy"
    assert receipt["proof"]["passed"]
    assert list(folder.samples.glob("step-000004-*.png"))
    return folder.path / receipt["result"]["file"]


def run(*arguments: str) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_what_was_trained_is_read_again(trained: Path) -> None:
    adapter = read_adapter(trained)
    assert adapter.family == "toy"
    assert set(adapter.modules) == {"transformer.blocks.0", "transformer.blocks.1"}
    assert all(weights.delta().abs().max() > 0 for weights in adapter.modules.values())


def test_inspected_and_merged(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("inspect", str(trained), "--json")
    assert json.loads(capsys.readouterr().out)["family"] == "toy"
    merged = tmp_path / "merged.safetensors"
    run("merge", f"{trained}:0.5", f"{trained}:0.5", "--out", str(merged))
    once, twice = read_adapter(trained), read_adapter(merged)
    for name, weights in once.modules.items():
        torch.testing.assert_close(twice.modules[name].delta(), weights.delta())


def test_estimated(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = draw_pictures(tmp_path / "images", 2)
    config = config_for(base, images, tmp_path, method__kind="rslora", optim__optimizer="sign")
    file = tmp_path / "config.yaml"
    file.write_text(dump(config), encoding="utf-8")
    run("estimate", str(file), "--json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["family"] == "toy"
    assert found["peak"] > 0


def test_sampled(base: Path, trained: Path, tmp_path: Path) -> None:
    plain, with_it = tmp_path / "plain", tmp_path / "with"
    common = ("a photo of sks ball", "--base", str(base), "--steps", "2", "--seed", "1")
    run("sample", *common, "--out", str(plain))
    run("sample", *common, "--out", str(with_it), "--adapter", f"{trained}:1")
    first, second = next(plain.rglob("*.png")), next(with_it.rglob("*.png"))
    assert first.read_bytes() != second.read_bytes()


OFFERED = """
import sys
sys.path.insert(0, sys.argv[1])
from comfy_nodes import settings, training
from dreambooth_core.config.describe import describe
from dreambooth_core.options import TrainConfig
from extension.tab import values
said = {each["key"]: each for each in settings.leaves(describe(TrainConfig))}
optimizer, method = said["optim.optimizer"], said["method.kind"]
assert "sign" in settings.widget(optimizer, "Optimizer").choices
assert "rslora" in training.KINDS
assert values.kind_of(optimizer) == "dropdown" and "sign" in optimizer["choices"]
assert "rslora" in method["choices"] and values.from_control(method, "rslora") == "rslora"
assert not {"torch", "toy_plugin"} & set(sys.modules)
"""


def test_offered_by_the_hosts(installed: None) -> None:
    """By the nodes' and the tab's choices, in a process that imports neither torch nor it."""
    subprocess.run([sys.executable, "-c", OFFERED, sys.path[0]], cwd=ROOT, check=True)
