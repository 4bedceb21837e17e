"""Ideogram 4."""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, GENERIC, LayerNames, Variant, qkv

_SAME = (
    *("layers.#.feed_forward.w1", "layers.#.feed_forward.w2", "layers.#.feed_forward.w3"),
    *("layers.#.adaln_modulation", "input_proj", "llm_cond_proj", "adaln_proj"),
    *("t_embedding.mlp_in", "t_embedding.mlp_out"),
    *("final_layer.linear", "final_layer.adaln_modulation"),
)

NAMES = LayerNames(
    family="ideogram4",
    label="Ideogram 4",
    layers={
        "layers.#.attention.to_out.0": "layers.#.attention.o",
        **{layer: layer for layer in _SAME},
    },
    fused=(qkv("layers.#.attention.qkv", "layers.#.attention"),),
    hosts={
        "ComfyUI": GENERIC,
        "diffusers": (("transformer.", DIFFUSERS), ("diffusion_model.", "native")),
    },
    variants=(Variant(4608, {"layers": 34}),),
    base_version="ideogram4",
)
