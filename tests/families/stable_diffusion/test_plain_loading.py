"""Whatever folder is written, ``from_pretrained(folder)`` loads it and it generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.families.stable_diffusion.folder import write_folder
from tests.helpers.reduced_models import reduced_parts


def generates(folder: Path, **how: torch.dtype) -> None:
    pipeline = DiffusionPipeline.from_pretrained(str(folder), local_files_only=True, **how)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a ball", num_inference_steps=1, height=64, width=64, output_type="np")
    assert image.images.shape == (1, 64, 64, 3)
    assert (
        pipeline.text_encoder.dtype == pipeline.unet.dtype == how.get("torch_dtype", torch.float32)
    )


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_every_precision(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    write_folder(reduced_parts(family), tmp_path, dtype=dtype)
    generates(tmp_path)


def test_in_the_precision_that_is_asked_for(tmp_path: Path) -> None:
    write_folder(reduced_parts("sd1"), tmp_path, dtype=torch.float16)
    generates(tmp_path, torch_dtype=torch.bfloat16)


def test_the_embedded_base_as_it_lies_there() -> None:
    generates(embedded_folder())
