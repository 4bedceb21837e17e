"""Results of diffusion transformers, in the names that hosts load: proved when they are saved."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from helpers import flow_bases
from helpers.runs import config_for, train

from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.storage import read_header
from dreambooth_core.jobs import read_receipt
from dreambooth_core.trainer import run as runs


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {
        "z_image": flow_bases.z_image(root / "z_image"),
        "flux": flow_bases.flux(root / "flux"),
    }


@pytest.mark.parametrize(
    ("family", "layout", "kind", "key"),
    [
        ("z_image", "host", "lora", "diffusion_model.layers.0.attention.to_q.lora_A.weight"),
        ("z_image", "kohya", "lora", "lora_unet_layers_0_attention_qkv.lora_down.weight"),
        ("flux", "host", "loha", "transformer.transformer_blocks.0.attn.to_q.hada_w1_a"),
        ("flux", "kohya", "lora", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"),
    ],
)
def test_a_result_is_proved_and_hosts_are_told(
    bases: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    family: str,
    layout: str,
    kind: str,
    key: str,
) -> None:
    config = config_for(
        bases[family],
        pictures,
        tmp_path,
        run__steps=1,
        method__kind=kind,
        method__alpha=2,
        method__train_text_encoder="false",
        save__layout=layout,
    )
    with mock.patch.object(runs, "estimate_of", lambda *_: None):
        folder = train(config, proven=True)
    (file,) = folder.path.glob("*.safetensors")
    assert key in read_header(file).tensors
    assert read_adapter(file).family == family
    receipt = read_receipt(folder)
    assert receipt["proof"]["passed"]
    told = {each["host"]: each for each in receipt["hosts"]}
    assert told["ComfyUI"]["loaded"] == told["ComfyUI"]["total"] > 0
    assert not told["A1111"]["runs"]
