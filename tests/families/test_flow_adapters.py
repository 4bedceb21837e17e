"""Adapters of rectified-flow families: diffusers loads what we save, and to the same effect."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from families.flow_proofs import Bench, Modular, predict
from helpers import flow_bases
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures

from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter

FOR_HOSTS_ALONE = ("lumina2", "anima")
"""What is fused for the hosts, or flat as kohya's, diffusers does not take: the run says so."""


@pytest.mark.parametrize("name", flow_bases.WRITERS)
def test_diffusers_loads_what_is_saved(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In its own layout, and in that of the hosts."""
    kind = Modular if name == "anima" else Bench
    bench = kind(flow_bases.WRITERS[name](tmp_path / "base"))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    config = config_for(
        bench.folder,
        draw_pictures(pictures),
        tmp_path / "runs",
        run__steps=2,
        method__alpha=2,
        method__train_text_encoder="false",
        optim__learning_rate=3e-2,
        save__layout="diffusers",
    )
    (file,) = train(config).path.glob("*.safetensors")
    adapter = read_adapter(file)
    files = [file]
    if name not in FOR_HOSTS_ALONE:
        files.append(write_adapter(adapter, tmp_path / "host.safetensors", "host"))

    parts = bench.parts()
    plain = predict(parts)
    AdapterStack(parts.models).load("ours", adapter)
    ours = predict(parts)
    assert float((ours - plain).abs().max()) > 1e-3

    pipeline, other = bench.pipeline(), bench.parts()
    other.denoiser = pipeline.transformer
    for file in files:
        with caplog.at_level(logging.WARNING):
            pipeline.load_lora_weights(file)
        said = [r.getMessage() for r in caplog.records if r.name.startswith(("diffusers", "peft"))]
        assert not [line for line in said if "unexpected" in line or "missing" in line]
        assert torch.allclose(predict(other), ours, atol=1e-5), file.name
        pipeline.unload_lora_weights()
        assert torch.allclose(predict(other), plain, atol=1e-5)
