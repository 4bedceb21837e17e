"""``dreambooth inspect``: what a file is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.model import Adapter, LoraWeights
from dreambooth_core.formats.adapters.write import host_tensors, write_adapter
from tests.helpers.adapters import weights_for

KEYS = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FULL = "unet.mid_block.attentions.0.proj_in"


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_an_adapter(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / ("f" if layout == "peft" else "f.safetensors")
    modules = {
        KEYS: weights_for(torch.ones(16, 768), "lora"),
        FULL: weights_for(torch.ones(16, 16), "lora", rank=2),
    }
    metadata = {"modelspec.trigger_phrase": "sks dog", "ss_seed": "7"}
    write_adapter(Adapter(modules, metadata, "sd1"), path, layout)
    assert main(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["family"] == "sd1"
    assert told["layout"] == layout
    assert told["ranks"] == {"2": 1, "4": 1}
    assert told["trigger_words"] == ["sks dog"]
    assert told["settings"]["seed"] == 7
    assert main(["inspect", str(path), "--metadata"]) == 0
    text = capsys.readouterr().out
    assert "method: lora" in text
    assert "sks dog" in text
    assert "unet.mid_block" in text
    assert "ss_seed = 7" in text


def test_damage_and_unknown_keys_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "f.safetensors"
    weights = weights_for(torch.ones(16, 768), "lora")
    assert isinstance(weights, LoraWeights)
    weights.up[0] = float("inf")
    tensors = host_tensors(Adapter({KEYS: weights}, family="sd1"), "kohya")
    storage.write_tensors(path, {**tensors, "odd.th\x1bing": torch.ones(1)})
    assert main(["inspect", str(path)]) == 2
    told = capsys.readouterr()
    assert "DAMAGED" in told.out
    assert r"odd.th\x1bing" in told.out
    assert f"1 modules hold NaN or infinity, the first is {KEYS}" in told.err
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == [KEYS]


def test_what_is_no_adapter_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "f.txt"
    path.write_text("hello")
    code = main(["inspect", str(path)])
    told = capsys.readouterr()
    assert (told.out + told.err).strip()
    assert code in (0, 2)
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_paths_of_a_machine_are_named_and_converting_takes_them_out(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {
        "ss_dataset_dirs": json.dumps({"/home/alice/dogs": {"n_repeats": 1}}),
        "ss_training_comment": "from C:\\Users\\alice\\dogs",
        "base_model_name_or_path": "/home/alice/base",
        "ss_sd_model_name": "v1-5.safetensors",
    }
    adapter = Adapter({KEYS: weights_for(torch.ones(16, 768), "lora")}, told, "sd1")
    ending = "" if layout == "peft" else ".safetensors"
    others, own = tmp_path / f"others{ending}", tmp_path / f"own{ending}"
    with monkeypatch.context() as elsewhere:
        # As other programs write it.
        elsewhere.setattr("dreambooth_core.formats.storage.cleaned", lambda value: value)
        elsewhere.setattr("dreambooth_core.formats.adapters.write.cleaned", lambda value: value)
        write_adapter(adapter, others, layout)
    assert main(["inspect", str(others)]) == 0
    assert "/home/alice" in capsys.readouterr().out
    assert main(["convert", str(others), str(own), "--layout", layout]) == 0
    assert main(["inspect", str(own), "--json"]) == 0
    out = capsys.readouterr().out
    assert "warnings" not in json.loads(out[out.index("{") :])
    files = [own] if own.is_file() else [p for p in own.rglob("*") if p.is_file()]
    assert all(b"alice" not in file.read_bytes() for file in files)
    assert any(b"v1-5.safetensors" in file.read_bytes() for file in files)


def test_a_base_of_every_kind_says_whether_it_can_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The hosts' pages ask this; they know no family."""
    for pipeline, family, trainable in (
        ("ZImagePipeline", "z_image", True),
        ("Flux2KleinPipeline", "flux2", True),
        ("KolorsPipeline", None, False),
    ):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        assert main(["inspect", str(tmp_path), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["family"], told["trainable"]) == (family, trainable)
