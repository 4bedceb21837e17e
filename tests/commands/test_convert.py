"""``dreambooth convert`` on adapters; checkpoints are in tests/formats/checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dreambooth_core.commands.main import main
from dreambooth_core.formats.adapters.write import write_adapter
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
