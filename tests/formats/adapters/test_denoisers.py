"""Extracting from, baking into and measuring against diffusion transformers of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreambooth_core.commands.main import main
from dreambooth_core.families.names import NAMES, LayerNames
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters.denoisers import is_transformer, read_denoiser
from dreambooth_core.formats.adapters.naming import unfused
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.adapters.write import write_adapter
from tests.helpers import host_files
from tests.helpers.adapters import relative
from tests.helpers.family_adapters import family_adapter, native_file

by_family = pytest.mark.parametrize("names", NAMES.working(), ids=lambda names: names.family)


def changes(base: Path, tuned: Path) -> dict[str, Tensor]:
    before, after = read_denoiser(base), read_denoiser(tuned)
    return {key: after.tensors[key] - tensor for key, tensor in before.tensors.items()}


@by_family
def test_what_was_baked_is_extracted(names: LayerNames, tmp_path: Path) -> None:
    base = native_file(names, tmp_path / "base.safetensors")
    adapter = family_adapter(names)
    file = write_adapter(adapter, tmp_path / "a.safetensors", "host")
    baked, out = tmp_path / "baked.safetensors", tmp_path / "out.safetensors"
    assert main(["bake", str(base), f"{file}:0.5", "--out", str(baked)]) == 0
    assert set(storage.read_header(baked).tensors) == set(storage.read_header(base).tensors)
    for key, change in changes(base, baked).items():
        wanted = adapter.modules[f"transformer.{key.removesuffix('.weight')}"].delta() * 0.5
        assert relative(change, wanted) < 1e-4, key
    assert main(["extract", str(base), str(baked), str(out), "--rank", "4"]) == 0
    found = unfused(read_adapter(out))
    assert found.family == names.family
    for name, weights in adapter.modules.items():
        assert relative(found.modules[name].delta(), weights.delta() * 0.5) < 1e-4, name


def test_an_adapter_that_depends_on_its_base_becomes_lora(tmp_path: Path) -> None:
    names = next(each for each in NAMES.working() if each.family == "z_image")
    base = native_file(names, tmp_path / "base.safetensors")
    adapter = family_adapter(names, "dora", only=("to_q", "to_k", "to_v"))
    file = write_adapter(adapter, tmp_path / "a.safetensors", "kohya")
    out = tmp_path / "out.safetensors"
    command = ["resize", str(file), str(out), "--rank", "12", "--base", str(base)]
    assert main([*command, "--layout", "diffusers"]) == 0
    weights = read_denoiser(base).tensors
    for name, made in read_adapter(out).modules.items():
        own = weights[f"{name.removeprefix('transformer.')}.weight"]
        assert relative(made.delta(), adapter.modules[name].delta(own)) < 1e-4


def test_fp8_is_read_with_its_scales(tmp_path: Path) -> None:
    names = next(each for each in NAMES.working() if each.family == "flux")
    base = native_file(names, tmp_path / "base.safetensors")
    tensors = {k: t.clone() for k, t in storage.read_tensors(base).items()}
    key = "model.diffusion_model.double_blocks.0.img_attn.qkv"
    small = (tensors[f"{key}.weight"] / 2).to(torch.float8_e4m3fn)
    quantised = {**tensors, f"{key}.weight": small, f"{key}.scale_weight": torch.tensor(2.0)}
    storage.write_tensors(tmp_path / "fp8.safetensors", quantised)
    read = read_denoiser(tmp_path / "fp8.safetensors")
    wanted = small.float()[:12] * 2
    assert torch.equal(read.tensors["transformer_blocks.0.attn.to_q.weight"], wanted)


def in_few_bits(names: LayerNames, folder: Path, kind: str) -> Path:
    """A denoiser as GGUF (all matrices as Q8_0), or as ComfyUI's fp8 with scales."""
    full = native_file(names, folder / "full.safetensors", width=96)
    prefix = "model.diffusion_model."
    tensors = storage.read_tensors(full)
    if kind == "fp8":
        path = folder / "fp8.safetensors"
        small = host_files.as_fp8(tensors, "scale_weight")
        marks = {f"{prefix}layers.0.attention.qkv.comfy_quant": torch.zeros(2, dtype=torch.uint8)}
        storage.write_tensors(path, {**small, **marks}, {"modelspec.title": "mine"})
        return path
    path = folder / "model.gguf"
    alone = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    host_files.write_gguf(path, alone, [key for key, t in alone.items() if t.shape[1] % 32 == 0])
    return path


@pytest.mark.parametrize("kind", ["GGUF", "fp8"])
@pytest.mark.parametrize("dtype", [None, "fp16"])
def test_an_adapter_is_baked_into_what_is_stored_in_few_bits(
    kind: str, dtype: str | None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """What the file's numbers mean, plus the change, rounded once; the rest of a fused layer is
    what it meant before."""
    names = next(each for each in NAMES.working() if each.family == "z_image")
    base = in_few_bits(names, tmp_path, kind)
    adapter = family_adapter(names, only=("attention.to_q",), width=96)
    file = write_adapter(adapter, tmp_path / "a.safetensors", "diffusers")
    baked, out = tmp_path / "baked.safetensors", tmp_path / "out.safetensors"
    command = ["bake", str(base), f"{file}:0.5", "--out", str(baked)]
    assert main([*command, *(["--dtype", dtype] if dtype else [])]) == 0
    assert f"the base is stored as {kind}" in capsys.readouterr().out

    stored = storage.read_tensors(baked)
    written = torch.float16 if dtype else torch.bfloat16
    before, after = read_denoiser(base), read_denoiser(baked)
    changed = set()
    for key, tensor in before.tensors.items():
        weights = adapter.modules.get(f"transformer.{key.removesuffix('.weight')}")
        if weights is None:
            beside = key.endswith(("to_k.weight", "to_v.weight"))
            wanted = tensor.to(written) if dtype or beside else tensor
        else:
            wanted = (tensor.float() + 0.5 * weights.delta()).to(written)
            changed.add(key)
        assert torch.equal(after.tensors[key], wanted), key
    assert changed == {f"{name.partition('.')[2]}.weight" for name in adapter.modules}
    fused = [key for key in stored if "layers.0.attention.qkv" in key]
    assert len(fused) == 1  # no scale, no mark beside a weight in full
    whole = {tensor.dtype for tensor in stored.values()} == {written}
    assert whole is (kind == "GGUF" or bool(dtype))

    assert main(["extract", str(base), str(baked), str(out), "--rank", "4"]) == 0
    assert f"a model is stored as {kind}" in capsys.readouterr().out
    found = unfused(read_adapter(out))
    for name, weights in adapter.modules.items():
        # bf16 rounds weights of 1 by up to 2^-9; the change is about 0.01.
        assert relative(found.modules[name].delta(), weights.delta() * 0.5) < 0.2, name


def test_an_adapter_of_another_family_is_not_baked(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flux, z_image = (n for n in NAMES.working() if n.family in ("flux", "z_image"))
    base = native_file(flux, tmp_path / "base.safetensors")
    file = write_adapter(family_adapter(z_image), tmp_path / "a.safetensors", "host")
    assert main(["bake", str(base), str(file), "--out", str(tmp_path / "b.safetensors")]) == 2
    assert "which the adapter, made for Z-Image, changes" in capsys.readouterr().err


def test_two_families_have_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flux, z_image = (n for n in NAMES.working() if n.family in ("flux", "z_image"))
    a = native_file(flux, tmp_path / "a.safetensors")
    b = native_file(z_image, tmp_path / "b.safetensors")
    assert main(["extract", str(a), str(b), str(tmp_path / "out.safetensors")]) == 2
    assert "the base is flux and the trained model is z_image" in capsys.readouterr().err


def test_folders(tmp_path: Path) -> None:
    assert not is_transformer(tmp_path)  # Stable Diffusion 1, 2 and XL have no such network
    names = next(each for each in NAMES.working() if each.family == "z_image")
    tensors = read_denoiser(native_file(names, tmp_path / "a.safetensors")).tensors
    (tmp_path / "transformer").mkdir()
    shard = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    storage.write_tensors(shard, {key: tensor.clone() for key, tensor in tensors.items()})
    assert is_transformer(tmp_path)
    again = read_denoiser(tmp_path)
    assert again.names is names
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in tensors.items())
