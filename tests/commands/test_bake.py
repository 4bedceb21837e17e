"""``dreambooth bake`` and ``dreambooth extract`` on whole checkpoints, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.families.stable_diffusion.read import read_model
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import adapter_for, parts_of, relative


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for family in ("sd1", "sdxl"):
        write_single_file(parts_of(family), folder / f"{family}.safetensors")
        write_adapter(adapter_for(family, every=4), folder / f"{family}-lora.safetensors")
        paths[family] = folder / f"{family}.safetensors"
        paths[f"{family}-lora"] = folder / f"{family}-lora.safetensors"
    return paths


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_there_and_back(
    family: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base, lora = models[family], models[f"{family}-lora"]
    baked, found = tmp_path / "baked.safetensors", tmp_path / "found.safetensors"
    assert main(["bake", str(base), f"{lora}:0.7", "--out", str(baked), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    before, adapter = read_model(base), read_adapter(lora)
    assert told["modules"] == len(adapter.modules)
    assert told["rounding"] < 1e-6
    after = read_model(baked)
    assert after.family == family
    for name, weights in adapter.modules.items():
        component, path = name.split(".", 1)
        key = f"{path}.weight"
        old, new = (m.components[component].tensors[key] for m in (before, after))
        assert relative(new - old, 0.7 * weights.delta(old)) < 1e-4, name
    assert main(["extract", str(base), str(baked), str(found), "--rank", "999", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["error"] < 1e-4
    extracted = read_adapter(found)
    assert extracted.family == family
    assert set(extracted.modules) == set(adapter.modules)
    for name, weights in adapter.modules.items():
        expected = 0.7 * weights.delta()
        assert relative(extracted.modules[name].delta().reshape(expected.shape), expected) < 1e-4


def test_the_loss_of_fp16_is_told(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "folder"
    argv = ["bake", str(models["sd1"]), str(models["sd1-lora"]), "--out", str(out)]
    assert main([*argv, "--dtype", "fp16", "--te-weight", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 1e-5 < told["rounding"] < 1e-2
    after, before = read_model(out), read_model(models["sd1"])
    text = before.components["text_encoder"].tensors
    for key, tensor in after.components["text_encoder"].tensors.items():
        assert torch.equal(tensor, text[key].half() if tensor.is_floating_point() else text[key])


def test_extract_by_block(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    baked, out = tmp_path / "baked.safetensors", tmp_path / "out.safetensors"
    base, lora = str(models["sd1"]), str(models["sd1-lora"])
    assert main(["bake", base, lora, "--out", str(baked)]) == 0
    argv = ["extract", base, str(baked), str(out), "--rank", "3"]
    assert main([*argv, "--block", "text_encoder=1", "--block", "mid_block=0.5"]) == 0
    assert "lost by cutting" in capsys.readouterr().out
    adapter = read_adapter(out)
    assert {w.rank for n, w in adapter.modules.items() if n.startswith("text_encoder")} == {1}
    assert {w.rank for n, w in adapter.modules.items() if "down_blocks" in n} == {3}


def test_mistakes_are_one_line(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = str(tmp_path / "out.safetensors")
    for argv, word in (
        (["bake", str(models["sd1"]), str(models["sdxl-lora"]), "--out", out], "kind of model"),
        (["extract", str(models["sd1"]), str(models["sdxl"]), out], "sd1 and the trained"),
        (["extract", str(models["sd1"]), str(models["sd1"]), out], "equal"),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert word in error
        assert error.count("\n") == 1
