"""Adapters of models that are not trained here: low-rank pairs need no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.storage import read_tensors, write_tensors
from tests.helpers.adapters import relative

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
MODELS: dict[str, tuple[str, tuple[str, ...], int]] = {
    "Wan in ComfyUI": (
        "diffusion_model.",
        (
            *(f"blocks.#.{a}_attn.{part}" for a in ("self", "cross") for part in "qkvo"),
            *("blocks.#.ffn.0", "blocks.#.ffn.2"),
        ),
        3,
    ),
    "Wan in diffusers": (
        "transformer.",
        (
            *(f"blocks.#.attn{n}.{part}" for n in (1, 2) for part in ATTENTION),
            "blocks.#.ffn.net.0.proj",
        ),
        3,
    ),
    "LTX-Video": (
        "diffusion_model.",
        (
            *(f"transformer_blocks.#.attn{n}.{part}" for n in (1, 2) for part in ATTENTION),
            *("transformer_blocks.#.ff.net.0.proj", "transformer_blocks.#.ff.net.2"),
        ),
        3,
    ),
    "CogVideoX": ("transformer.", tuple(f"transformer_blocks.#.attn1.{p}" for p in ATTENTION), 30),
    # Of Flux's shape, one block deeper.
    "HunyuanVideo in diffusers": (
        "transformer.",
        (
            *(f"transformer_blocks.#.attn.{part}" for part in ATTENTION),
            *(f"single_transformer_blocks.#.attn.{part}" for part in ATTENTION[:3]),
        ),
        20,
    ),
    "HunyuanVideo by kohya": (
        "lora_unet_",
        tuple(
            f"double_blocks_#_img_{part}"
            for part in ("attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2", "mod_linear")
        ),
        20,
    ),
}
"""What stands before the names, the layers with a block's number as ``#``, how many blocks."""


def write(path: Path, model: str, seed: int, *, width: int = 8) -> Path:
    before, layers, blocks = MODELS[model]
    kohya = before.startswith("lora_unet")
    tails = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in (layer.replace("#", str(n)) for n in range(blocks) for layer in layers):
        for tail, shape in zip(tails, ((4, width), (width, 4)), strict=True):
            tensors[f"{before}{layer}.{tail}.weight"] = torch.randn(shape, generator=generator)
        if kohya:
            tensors[f"{before}{layer}.alpha"] = torch.tensor(2.0)
    write_tensors(path, tensors)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_tools_keep_the_names(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read, merged, cut to a rank and converted, every layer has the name that it had."""
    a, b = (write(tmp_path / f"{n}.safetensors", model, n) for n in (1, 2))
    assert main(["inspect", str(a), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "adapter" and told["family"] is None
    merged, small, again = (tmp_path / f"{n}.safetensors" for n in ("merged", "small", "again"))
    assert main(["merge", f"{a}:0.5", f"{b}:1.5", "--out", str(merged)]) == 0
    assert main(["resize", str(merged), str(small), "--rank", "8"]) == 0
    assert main(["convert", str(small), str(again), "--half"]) == 0
    names = {key.split(".lora_")[0].removesuffix(".alpha") for key in read_tensors(a)}
    for path in (merged, small, again):
        kept = {key.split(".lora_")[0].removesuffix(".alpha") for key in read_tensors(path)}
        assert kept == names
    one, two, summed = (read_adapter(path).modules for path in (a, b, again))
    for name, weights in summed.items():
        wanted = one[name].delta() * 0.5 + two[name].delta() * 1.5
        assert relative(weights.delta(), wanted) < 2e-3, name


def test_a_text_as_wide_as_sdxls_makes_no_unet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "a.safetensors", "LTX-Video", 1, width=2048)
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] is None


def test_they_do_not_go_onto_another_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (write(tmp_path / f"{n}.safetensors", n, 1) for n in ("CogVideoX", "Wan in diffusers"))
    out = tmp_path / "out.safetensors"
    assert main(["bake", "pocket", str(a), "--out", str(out)]) == 2
    assert main(["extract", str(a), str(b), str(out)]) == 2
    assert not out.exists() and "Traceback" not in capsys.readouterr().err
