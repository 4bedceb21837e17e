"""The tiny rectified-flow models that other tests train load and generate as the real ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from helpers.flow_bases import WRITERS
from torch import nn

CALLS = {
    "ideogram4": {"guidance_scale": 4.0, "guidance_schedule": None, "max_sequence_length": 32},
    "hidream": {"max_sequence_length": 32},
}
"""What the pipelines' own defaults would make long."""


# Anima has a modular pipeline alone, which its own test runs.
@pytest.mark.parametrize("name", [name for name in WRITERS if name != "anima"])
def test_a_tiny_model_generates(name: str, tmp_path: Path) -> None:
    folder = WRITERS[name](tmp_path / name)
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.default_sample_size = 8  # HiDream's makes every size as large as this one
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    assert sum(w.numel() for module in modules for w in module.parameters()) < 6_000_000
    images = pipeline(
        prompt="a photo of sks dog",
        height=64,
        width=64,
        num_inference_steps=2,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
        **CALLS.get(name, {}),
    ).images
    assert images.shape == (1, 3, 64, 64)
    assert images.isfinite().all()
