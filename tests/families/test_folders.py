"""Folders in diffusers' layout whose parts do not belong together, before a weight is wanted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import flow_bases
from safetensors.torch import load_file, save_file

from dreambooth_core.errors import UserError
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow_bases.flux2_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def chroma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow_bases.chroma(tmp_path_factory.mktemp("chroma"))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_base(BaseOptions(model=str(folder)), weights=False)
    return caught.value.line


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("transformer", "the transformer is of another model (ChromaTransformer2DModel; Flux.2"),
        ("vae", "the vae is of another model (AutoencoderKL; Flux.2 Klein has AutoencoderKLFlux2)"),
        ("text_encoder", "the text encoder is of another model (t5; Flux.2 Klein has qwen3)"),
    ],
)
def test_a_part_of_another_family(
    klein: Path, chroma: Path, tmp_path: Path, part: str, words: str
) -> None:
    shutil.copytree(klein, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / part)
    shutil.copytree(chroma / part, tmp_path / "base" / part)
    assert words in refused(tmp_path / "base")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_not_there(klein: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(klein, tmp_path / "base")
    shutil.rmtree(tmp_path / "base" / part)
    said = refused(tmp_path / "base")
    assert f"this Flux.2 Klein has no {part.replace('_', ' ')}" in said
    assert f"Put the folder {part} of the same model there" in said


def test_a_shard_that_is_cut(chroma: Path, tmp_path: Path) -> None:
    """Before any weight is wanted."""
    base = tmp_path / "base"
    shutil.copytree(chroma, base)
    whole = base / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    shard = whole.with_name("diffusion_pytorch_model-00001-of-00001.safetensors")
    save_file(tensors, shard)
    index = whole.with_name(f"{whole.name}.index.json")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, shard.name)}))
    load_base(BaseOptions(model=str(base)), weights=False)
    shard.write_bytes(shard.read_bytes()[:-50])
    assert "cut short" in refused(base)


def test_configurations_are_of_every_network(tmp_path: Path) -> None:
    """Memory is estimated from them, also for what only images are made with."""
    parts = load_base(
        BaseOptions(model=str(flow_bases.ideogram4(tmp_path / "base"))), weights=False
    )
    assert set(parts.configs) == set(parts.family.networks) > {"unconditional_transformer"}
