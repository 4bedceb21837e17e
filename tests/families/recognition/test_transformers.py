"""Files of diffusion transformers are told by their keys and shapes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dreambooth_core.commands.main import main
from dreambooth_core.families.names import NAMES, LayerNames, names_of
from dreambooth_core.families.recognition.transformers import look
from dreambooth_core.formats import storage
from tests.helpers.family_adapters import sizes

WIDTHS = {"flux": 3072, "z_image": 3840, "lumina2": 2304, "qwen_image": 3072, "sd3": 1536}


def denoiser(names: LayerNames, side: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Keys and shapes, two blocks of each kind."""
    own = sizes(names, WIDTHS.get(names.family, 12))
    if side == "native":
        shapes = {native: own[template] for template, native in names.layers.items()}
        for fused in names.fused:
            rows = sum(own[part][0] for part in fused.parts)
            shapes[fused.native] = (rows, own[fused.parts[0]][1])
    else:
        shapes = own
    return {
        f"{prefix}{key.replace('#', str(block))}.weight": shape
        for key, shape in shapes.items()
        for block in range(2)
    }


@pytest.mark.parametrize("side", ["native", "diffusers"])
@pytest.mark.parametrize("names", NAMES.working(), ids=lambda names: names.family)
def test_denoisers(names: LayerNames, side: str) -> None:
    found = look(denoiser(names, side, "model.diffusion_model."), {"F8_E4M3": 9})
    assert found is not None
    assert (found.kind, found.family) == ("denoiser", names.family)
    assert found.details["quantisation"] == "fp8 (F8_E4M3)"
    whole = {**denoiser(names, side, "model.diffusion_model."), "vae.encoder.x": (1,)}
    found = look(whole, {})
    assert found is not None
    assert (found.kind, found.details["parts"]) == ("checkpoint", ["denoiser", "vae"])


@pytest.mark.parametrize(("width", "name"), [(6144, "Flux.2 dev"), (3072, "Flux.2 Klein 4B")])
def test_sizes_that_are_models_of_their_own(width: int, name: str) -> None:
    names = names_of("flux2")
    assert names is not None
    shapes = {
        key: (out * width // 12, width) for key, (out, _) in denoiser(names, "native").items()
    }
    found = look(shapes, {})
    assert found is not None
    assert found.label == f"a {name} denoiser"


LAYER = "model.layers.0."
ATTENTION = f"{LAYER}self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("shapes", "kind", "word"),
    [
        ({ATTENTION: (1024, 2560), f"{LAYER}self_attn.q_norm.weight": (128,)}, "text", "Z-Image"),
        ({ATTENTION: (512, 3584), f"{LAYER}self_attn.q_proj.bias": (3584,)}, "text", "Qwen-Image"),
        (
            {ATTENTION: (1024, 2304), f"{LAYER}pre_feedforward_layernorm.weight": (2304,)},
            "text",
            "Lumina 2",
        ),
        (
            {ATTENTION: (1024, 5120), f"{LAYER}mlp.gate_proj.weight": (9, 5120)},
            "text",
            "Flux.2 dev",
        ),
        ({ATTENTION: (64, 77), f"{LAYER}mlp.gate_proj.weight": (9, 77)}, "text", "77 wide"),
        ({"decoder.conv_in.weight": (512, 16, 3, 3)}, "vae", "Flux.1"),
        ({"decoder.conv_in.weight": (512, 32, 3, 3)}, "vae", "Flux.2"),
        ({"decoder.conv1.weight": (384, 16, 3, 3, 3)}, "vae", "Qwen-Image"),
    ],
)
def test_encoders_and_autoencoders(
    shapes: dict[str, tuple[int, ...]], kind: str, word: str
) -> None:
    if kind == "text":
        shapes = {**shapes, f"{LAYER}mlp.gate_proj.weight": (9, 9)}
    found = look(shapes, {})
    assert found is not None
    assert found.kind.startswith(kind)
    assert word in found.label


@pytest.mark.parametrize(
    ("tails", "method"),
    [
        (("qweight", "wscales"), "Nunchaku (SVDQuant)"),
        (("qweight", "qzeros"), "GPTQ or AWQ"),
        (("weight.quant_state.bitsandbytes__nf4", "weight.absmax"), "bitsandbytes"),
        (("weight", "weight_scale_2"), "NVFP4"),
    ],
)
def test_what_cannot_be_read_is_named(
    tails: tuple[str, ...], method: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    base = "transformer_blocks.0.attn.to_q"
    path = tmp_path / "a.safetensors"
    storage.write_tensors(path, {f"{base}.{tail}": torch.ones(4, 4) for tail in tails})
    assert main(["inspect", str(path)]) == 0
    told = capsys.readouterr().out
    assert f"quantised by {method}" in told
    assert "get the model in bf16, fp16 or fp8" in told


def test_layers_that_other_models_have_too_are_left_to_them() -> None:
    unet = {"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight": (8, 8)}
    assert look(unet, {}) is None
    clip = {f"cond_stage_model.transformer.encoder.{ATTENTION[6:]}": (768, 768)}
    clip[f"cond_stage_model.transformer.encoder.{LAYER[6:]}self_attn.q_proj.bias"] = (768,)
    assert look(clip, {}) is None
    clip = {"text_model.encoder.layers.0.self_attn.k_proj.weight": (768, 768)}
    assert look(clip, {}) is None
    assert look({"decoder.conv_in.weight": (512, 4, 3, 3)}, {}) is None
