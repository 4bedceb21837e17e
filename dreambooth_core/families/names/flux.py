"""Flux.1 (dev, schnell, Krea).

Names and what hosts load: ComfyUI's ``comfy/lora.py`` and ``flux_to_diffusers`` in
``comfy/utils.py``, and their copies in Forge and Forge Neo.
"""

from __future__ import annotations

from dreambooth_core.families.names.record import (
    DIFFUSERS,
    FLAT,
    GENERIC,
    Fused,
    LayerNames,
    Variant,
    qkv,
)

DOUBLE = {
    "transformer_blocks.#.attn.to_out.0": "double_blocks.#.img_attn.proj",
    "transformer_blocks.#.attn.to_add_out": "double_blocks.#.txt_attn.proj",
    "transformer_blocks.#.ff.net.0.proj": "double_blocks.#.img_mlp.0",
    "transformer_blocks.#.ff.net.2": "double_blocks.#.img_mlp.2",
    "transformer_blocks.#.ff_context.net.0.proj": "double_blocks.#.txt_mlp.0",
    "transformer_blocks.#.ff_context.net.2": "double_blocks.#.txt_mlp.2",
}
SINGLE = {"single_transformer_blocks.#.proj_out": "single_blocks.#.linear2"}
IMAGE = qkv("double_blocks.#.img_attn.qkv", "transformer_blocks.#.attn")
TEXT = Fused(
    "double_blocks.#.txt_attn.qkv",
    tuple(f"transformer_blocks.#.attn.add_{part}_proj" for part in "qkv"),
)
LINEAR1 = Fused(
    "single_blocks.#.linear1",
    (
        *(f"single_transformer_blocks.#.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.#.proj_mlp",
    ),
    (1, 1, 1, 4),
)
TRANSFORMER = ("transformer.", DIFFUSERS)
TABLE = (
    *GENERIC,
    TRANSFORMER,
    ("lycoris_", DIFFUSERS),
    ("lora_transformer_", DIFFUSERS),
    ("", DIFFUSERS),
)
"""What ComfyUI and Forge Neo load for models of Flux's class."""

NAMES = LayerNames(
    family="flux",
    label="Flux.1",
    layers={
        **DOUBLE,
        **SINGLE,
        "transformer_blocks.#.norm1.linear": "double_blocks.#.img_mod.lin",
        "transformer_blocks.#.norm1_context.linear": "double_blocks.#.txt_mod.lin",
        "single_transformer_blocks.#.norm.linear": "single_blocks.#.modulation.lin",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
        "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    },
    fused=(IMAGE, TEXT, LINEAR1),
    swapped=frozenset({"norm_out.linear"}),
    hosts={
        "Forge": tuple(form for form in TABLE if form[0]),
        "Forge Neo": TABLE,
        "ComfyUI": TABLE,
        "diffusers": (TRANSFORMER, FLAT),
    },
    written="diffusers",
    variants=(Variant(3072, {"transformer_blocks": 19, "single_transformer_blocks": 38}),),
    ratios={
        "single_blocks.#.linear1": 7,
        "transformer_blocks.#.ff.net.0.proj": 4,
        "transformer_blocks.#.ff_context.net.0.proj": 4,
    },
    base_version="flux1",
    clips=1,
    t5="23",
    architecture="flux-1-dev/lora",
)
