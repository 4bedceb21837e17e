"""Qwen-Image: the hosts' names are diffusers'."""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, GENERIC, LayerNames, Variant

_BLOCK = (
    *("img_mod.1", "txt_mod.1"),
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
)
_TOP = (
    *("img_in", "txt_in", "norm_out.linear", "proj_out"),
    "time_text_embed.timestep_embedder.linear_1",
    "time_text_embed.timestep_embedder.linear_2",
)
_LAYERS = (*(f"transformer_blocks.#.{layer}" for layer in _BLOCK), *_TOP)
_HOSTS = (*GENERIC, ("transformer.", DIFFUSERS), ("lycoris_", DIFFUSERS), ("", DIFFUSERS))

NAMES = LayerNames(
    family="qwen_image",
    label="Qwen-Image",
    layers={layer: layer for layer in _LAYERS},
    hosts={
        "Forge Neo": _HOSTS,
        "ComfyUI": _HOSTS,
        "diffusers": (("transformer.", DIFFUSERS), *GENERIC),
    },
    comfyui=DIFFUSERS,
    variants=(Variant(3072, {"transformer_blocks": 60}),),
    base_version="qwen_image",
)
