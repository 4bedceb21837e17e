"""``dreambooth convert`` on adapters; checkpoints are in tests/families/stable_diffusion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import flow_bases
from safetensors.torch import load_file

from dreambooth_core.commands.main import main
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.adapters.write import write_adapter
from dreambooth_core.formats.storage import read_tensors
from tests.helpers.adapters import adapter_for


@pytest.mark.parametrize("flag", ["half", "bf16", "float"])
def test_an_adapter_is_written_in_the_asked_precision(flag: str, tmp_path: Path) -> None:
    source = write_adapter(adapter_for("sd1", every=9), tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    assert main(["convert", str(source), str(target), f"--{flag}"]) == 0
    asked = {"half": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}[flag]
    before, after = load_file(source), load_file(target)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], tensor.to(asked)) for key, tensor in before.items())


def test_an_adapter_keeps_its_precision(tmp_path: Path) -> None:
    adapter = adapter_for("sd1", every=9).to(torch.bfloat16)
    source = write_adapter(adapter, tmp_path / "a.safetensors")
    target = tmp_path / "b.safetensors"
    assert main(["convert", str(source), str(target), "--layout", "diffusers"]) == 0
    weights = [t for key, t in load_file(target).items() if not key.endswith("alpha")]
    assert {t.dtype for t in weights} == {torch.bfloat16}


@pytest.mark.parametrize("family", ["z_image", "anima", "flux2_dev"])
def test_a_denoiser_of_rectified_flow_goes_there_and_back(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """From a folder to the file that a full result is, and as a folder for diffusers' class."""
    base = flow_bases.WRITERS[family](tmp_path / "base")
    file, back, own = tmp_path / "a.safetensors", tmp_path / "back", tmp_path / "own.safetensors"
    assert main(["convert", str(base), str(file)]) == 0
    assert "hosts' names" in capsys.readouterr().out
    parts = load_base(BaseOptions(model=str(base)))
    parts.family.write_file(parts, own, torch.float32, {})
    stored = read_tensors(own)
    assert stored.keys() == read_tensors(file).keys()
    assert all(torch.equal(stored[key], value) for key, value in read_tensors(file).items())
    half = tmp_path / "half.safetensors"
    assert main(["convert", str(file), str(half), "--half"]) == 0
    assert all(torch.equal(v, stored[key].half()) for key, v in read_tensors(half).items())
    assert read_tensors(half).keys() == stored.keys()
    capsys.readouterr()
    assert main(["convert", str(file), str(back), "--bf16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == family
    again = read_tensors(back / "diffusion_pytorch_model.safetensors")
    for key, value in parts.denoiser.state_dict().items():
        assert torch.equal(again[key], value.bfloat16()), key


def test_what_rectified_flow_has_not_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = flow_bases.z_image(tmp_path / "base")
    for line, said in (
        (["b.ckpt"], "not written as .ckpt"),
        (["b.safetensors", "--prediction_type", "v_prediction"], "is for Stable Diffusion"),
    ):
        assert main(["convert", str(base), str(tmp_path / line[0]), *line[1:]]) == 2
        assert said in capsys.readouterr().err
