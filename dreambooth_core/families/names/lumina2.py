"""Lumina 2.

The hosts' table of Z-Image serves Lumina's class, and cuts ``qkv`` in three equal parts; here k
and v are a third of q (grouped heads), so separate names are cut wrongly: ``qkv`` is written.
"""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, GENERIC, LayerNames, Variant, qkv

BLOCKS = ("layers.#", "noise_refiner.#", "context_refiner.#")
_TIME = "time_caption_embed"

NAMES = LayerNames(
    family="lumina2",
    label="Lumina 2",
    layers={
        **{f"{block}.attn.to_out.0": f"{block}.attention.out" for block in BLOCKS},
        **{
            f"{block}.feed_forward.linear_{n}": f"{block}.feed_forward.w{n}"
            for block in BLOCKS
            for n in (1, 2, 3)
        },
        **{f"{block}.norm1.linear": f"{block}.adaLN_modulation.1" for block in BLOCKS},
        "x_embedder": "x_embedder",
        "norm_out.linear_1": "final_layer.adaLN_modulation.1",
        "norm_out.linear_2": "final_layer.linear",
        f"{_TIME}.timestep_embedder.linear_1": "t_embedder.mlp.0",
        f"{_TIME}.timestep_embedder.linear_2": "t_embedder.mlp.2",
        f"{_TIME}.caption_embedder.1": "cap_embedder.1",
    },
    fused=tuple(qkv(f"{block}.attention.qkv", f"{block}.attn", (3, 1, 1)) for block in BLOCKS),
    hosts={
        "Forge Neo": GENERIC,
        "ComfyUI": GENERIC,
        "diffusers": (("transformer.", DIFFUSERS),),
    },
    variants=(Variant(2304, {"layers": 26, "noise_refiner": 2, "context_refiner": 2}),),
    ratios={f"{block}.attention.qkv": 5 / 3 for block in BLOCKS},
    base_version="lumina",
)
