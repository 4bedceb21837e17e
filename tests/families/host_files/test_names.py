"""The hosts' names of real models: as diffusers' own conversions read them; sizes from shapes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from helpers import host_files

from dreambooth_core.families.host_files import vaes as host_vaes
from dreambooth_core.families.registry import FAMILIES

CONVERSIONS = {
    "z_image": "convert_z_image_transformer_checkpoint_to_diffusers",
    "flux2": "convert_flux2_transformer_checkpoint_to_diffusers",
    "flux": "convert_flux_transformer_checkpoint_to_diffusers",
    "chroma": "convert_chroma_transformer_checkpoint_to_diffusers",
    "sd3": "convert_sd3_transformer_checkpoint_to_diffusers",
    "lumina2": "convert_lumina2_to_diffusers",
    "krea2": "convert_krea2_transformer_checkpoint_to_diffusers",
    "flux2_dev": "convert_flux2_transformer_checkpoint_to_diffusers",
    "hidream": "convert_hidream_transformer_to_diffusers",
}
REAL: dict[str, dict[str, Any]] = {
    "z_image": {},
    "flux2": {
        "num_layers": 5,
        "num_single_layers": 20,
        "num_attention_heads": 24,
        "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    "flux": {"guidance_embeds": True},
    "chroma": {},
    # 3.5 medium.
    "sd3": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "lumina2": {"axes_dim_rope": (32, 32, 32), "axes_lens": (300, 512, 512), "cap_feat_dim": 2304},
    "qwen_image": {},
    "krea2": {},
    "flux2_dev": {},
    "ideogram4": {},
    "hidream": {
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "caption_channels": [4096, 4096],
        "axes_dims_rope": (64, 32, 32),
        "llama_layers": [*range(32), *[31] * 16],
    },
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_size_is_told_by_shapes(name: str) -> None:
    family = FAMILIES[name]
    assert family.files is not None
    with torch.device("meta"):
        model = getattr(diffusers, family.classes["transformer"].rpartition(".")[2])(**REAL[name])
    stored = family.files.to_hosts(model.state_dict())
    assert family.files.fits(stored)
    found = family.files.config(family.files.to_diffusers(stored))
    assert found.pop("_class_name") == type(model).__name__
    for key, value in found.items():
        wanted = model.config[key]
        assert value == (list(wanted) if isinstance(wanted, tuple) else wanted), key


@pytest.mark.parametrize("name", CONVERSIONS)
def test_names_are_those_of_diffusers_conversion(name: str) -> None:
    """On matrices of the real height and one column, each row with a number of its own."""
    family = FAMILIES[name]
    assert family.files is not None
    kind = getattr(diffusers, family.classes["transformer"].rpartition(".")[2])
    few = {"n_layers", "num_layers", "num_single_layers"}
    few &= set(inspect.signature(kind.__init__).parameters)
    with torch.device("meta"):
        model = kind(**{**REAL[name], **dict.fromkeys(few, 2)})
    numbers, state = 0, {}
    for key, tensor in model.state_dict().items():
        rows = len(tensor)
        state[key] = torch.arange(numbers, numbers + rows, dtype=torch.float64)
        state[key] = state[key].reshape(rows, *[1] * (tensor.dim() - 1))
        numbers += rows
    stored = family.files.to_hosts(state)
    theirs = getattr(single_file_utils, CONVERSIONS[name])(dict(stored))
    ours = family.files.to_diffusers(stored)
    assert ours.keys() == theirs.keys() == state.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    assert all(torch.equal(ours[key], tensor) for key, tensor in state.items())


IDEOGRAM4 = {
    *("input_proj.weight", "input_proj.bias", "llm_cond_norm.weight"),
    *("llm_cond_proj.weight", "llm_cond_proj.bias", "embed_image_indicator.weight"),
    *("adaln_proj.weight", "adaln_proj.bias"),
    *(f"t_embedding.mlp_{end}.{kind}" for end in ("in", "out") for kind in ("weight", "bias")),
    *(f"final_layer.{n}.{k}" for n in ("linear", "adaln_modulation") for k in ("weight", "bias")),
    *(f"layers.#.{norm}{n}.weight" for norm in ("attention_norm", "ffn_norm") for n in (1, 2)),
    *(f"layers.#.attention.{part}.weight" for part in ("qkv", "o", "norm_q", "norm_k")),
    *(f"layers.#.feed_forward.w{n}.weight" for n in (1, 2, 3)),
    *("layers.#.adaln_modulation.weight", "layers.#.adaln_modulation.bias"),
}
"""The parameters of ComfyUI's ``comfy/ldm/ideogram4/model.py``, which diffusers cannot convert."""


def test_ideograms_file_has_comfyuis_names() -> None:
    files = FAMILIES["ideogram4"].files
    assert files is not None
    with torch.device("meta"):
        state = diffusers.Ideogram4Transformer2DModel(num_layers=2).state_dict()
    stored = files.to_hosts(state)
    assert stored.keys() == {key.replace("#", str(i)) for key in IDEOGRAM4 for i in range(2)}
    assert stored["layers.0.attention.qkv.weight"].shape == (3 * 4608, 4608)


def test_a_video_autoencoder_is_named_as_by_diffusers_conversion() -> None:
    with torch.device("meta"):
        model = diffusers.AutoencoderKLQwenImage()
    state = dict(model.state_dict())
    wans = {host_files.video_name(name, 2): tensor for name, tensor in state.items()}
    kind = host_vaes.vae_kind(wans)
    assert kind is not None
    ours = kind.rename(wans, Path())
    theirs = single_file_utils.convert_wan_vae_to_diffusers(dict(wans))
    assert ours.keys() == theirs.keys() == state.keys()
    assert all(ours[name] is tensor is theirs[name] for name, tensor in state.items())
    found = kind.config(wans)
    assert all(model.config[key] == value for key, value in found.items())
