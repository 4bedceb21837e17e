"""Adapters of rectified-flow families: diffusers loads what we save, and to the same effect."""

from __future__ import annotations

import logging
from pathlib import Path
from unittest import mock

import pytest
import torch
from families.flow_proofs import Bench, Modular, predict
from helpers import flow_bases
from helpers.runs import config_for, train
from helpers.tiny import draw_pictures

from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.trainer import run as runs

FAMILIES = tuple(flow_bases.WRITERS)
PAIRS = [(name, layout) for name in FAMILIES for layout in ("host", "diffusers")]
# Fused for the hosts, or flat as kohya's, which diffusers does not take: the run says so.
PAIRS.remove(("lumina2", "host"))
PAIRS.remove(("anima", "host"))


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_diffusers_loads_what_is_saved(
    name: str, layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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
        save__layout=layout,
    )
    with mock.patch.object(runs, "estimate_of", lambda *_: None):
        (file,) = train(config).path.glob("*.safetensors")
    adapter = read_adapter(file)

    parts = bench.parts()
    plain = predict(parts)
    AdapterStack(parts.models).load("ours", adapter)
    ours = predict(parts)
    assert float((ours - plain).abs().max()) > 1e-3

    pipeline = bench.pipeline()
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(file)
    said = [r.getMessage() for r in caplog.records if r.name.startswith(("diffusers", "peft"))]
    assert not [line for line in said if "unexpected" in line or "missing" in line]
    other = bench.parts()
    other.denoiser = pipeline.transformer
    assert torch.allclose(predict(other), ours, atol=1e-5)
