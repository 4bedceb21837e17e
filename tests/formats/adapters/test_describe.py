"""What ``inspect`` says of an adapter."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from dreambooth_core.formats.adapters.describe import block_norms, describe, faults, layout_of
from dreambooth_core.formats.adapters.model import Adapter, LoraWeights, Weights
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers.adapters import METHODS, weights_for

QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
VALUE = "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v"
FEED = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
TEXT = "text_encoder.text_model.encoder.layers.10.mlp.fc1"


def adapter(method: str = "lora") -> Adapter:
    modules: dict[str, Weights] = {
        name: weights_for(torch.ones(16, 12), method, rank=2 + i, alpha=1.5, seed=i)
        for i, name in enumerate((TEXT, QUERY, VALUE, FEED))
    }
    metadata = {
        "ss_sd_model_name": "v1-5.safetensors",
        "ss_learning_rate": "0.0001",
        "ss_epoch": "10",
        "ss_tag_frequency": json.dumps({"3_dog": {"sks dog": 9, "grass": 2}, "1_reg": {"dog": 5}}),
    }
    return Adapter(modules, metadata, "sd1")


def test_the_whole_report(tmp_path: Path) -> None:
    path = write_adapter(adapter(), tmp_path / "a.safetensors")
    report = describe(read_adapter(path), path)
    assert report["method"] == "lora"
    assert report["layout"] == "kohya"
    assert report["family"] == "sd1"
    assert report["modules"] == {"unet": 3, "text_encoder": 1}
    assert report["ranks"] == {"2": 1, "3": 1, "4": 1, "5": 1}
    assert report["alphas"] == {"1.5": 4}
    assert (
        report["targets"]
        == {
            "text_encoder mlp.fc1": 1,
            "unet attn1.to_q": 1,
            "unet attn2.to_v": 1,
            "unet ff.net.0.proj": 1,
        }
        or report["targets"]["text_encoder fc1"] == 1
    )
    assert report["trigger_words"] == ["sks dog", "dog", "grass"]
    assert report["base"] == "v1-5.safetensors"
    assert report["settings"]["learning_rate"] == 0.0001
    assert report["settings"]["epoch"] == 10
    assert report["parameters"] == sum(r * 28 for r in (2, 3, 4, 5))
    assert report["damaged"] == report["zero"] == report["unknown_keys"] == []
    json.dumps(report)


def test_norms_per_block_in_order() -> None:
    one = adapter()
    norms = block_norms(one)
    assert list(norms) == [
        "unet.down_blocks.0",
        "unet.mid_block",
        "unet.up_blocks.1",
        "text_encoder.layers.10",
    ]
    assert norms["unet.mid_block"] == pytest.approx(float(one.modules[FEED].delta().norm()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_norms(method: str) -> None:
    report = describe(adapter(method))
    assert report["method"] == method
    assert all(math.isfinite(n) and n > 0 for n in report["norms"].values())
    assert report["zero"] == []


def test_damaged_and_empty_modules_are_named() -> None:
    one = adapter()
    broken, empty = one.modules[QUERY], one.modules[VALUE]
    assert isinstance(broken, LoraWeights)
    assert isinstance(empty, LoraWeights)
    broken.up[0, 0] = float("nan")
    empty.up.zero_()
    assert faults(one) == ([QUERY], [VALUE])
    report = describe(one)
    assert report["damaged"] == [QUERY]
    assert "unet.down_blocks.0" not in report["norms"]
    loha = adapter("loha")
    loha.modules[TEXT].w2_b.zero_()  # type: ignore[attr-defined]
    assert faults(loha) == ([], [TEXT])


def test_trigger_words_as_written_come_first() -> None:
    one = adapter()
    one.metadata["modelspec.trigger_phrase"] = "sks dog, sks"
    assert describe(one)["trigger_words"] == ["sks dog", "sks"]
    one.metadata = {"ss_tag_frequency": "no json"}
    assert describe(one)["trigger_words"] == []


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "peft"])
def test_layouts(layout: str, tmp_path: Path) -> None:
    path = tmp_path / ("f" if layout == "peft" else "f.safetensors")
    assert layout_of(write_adapter(adapter(), path, layout)) == layout
