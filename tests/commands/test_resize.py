"""``dreambooth resize``: a smaller rank, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import relative, weights_for

NAME = "unet.mid_block.attentions.0.proj_in"


def make(path: Path, method: str = "lora") -> Path:
    weights = weights_for(torch.ones(16, 12), method, rank=6)
    return write_adapter(Adapter({NAME: weights}, {}, "sd1"), path)


def test_by_rank(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source, out = make(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"
    assert main(["resize", str(source), str(out), "--rank", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ranks"] == {NAME: 2}
    before, after = (read_adapter(p).modules[NAME].delta() for p in (source, out))
    assert relative(after, before) == pytest.approx(told["error"], rel=1e-3)


def test_by_energy_and_in_place(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = make(tmp_path / "a.safetensors", "loha")
    assert main(["resize", str(source), str(source), "--energy", "0.9"]) == 0
    assert "lost:" in capsys.readouterr().out
    adapter = read_adapter(source)
    assert adapter.method == "lora"
    assert adapter.modules[NAME].rank < 12


def test_a_rank_is_needed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = make(tmp_path / "a.safetensors")
    assert main(["resize", str(source), str(tmp_path / "b.safetensors")]) == 2
    assert "--rank or --energy" in capsys.readouterr().err
