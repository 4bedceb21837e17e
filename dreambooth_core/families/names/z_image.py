"""Z-Image (base and Turbo).

diffusers' names behind ``diffusion_model.`` are mapped by ComfyUI (``z_image_to_diffusers``) and
Forge Neo, and have separate q, k and v; flat ``lora_unet_…to_q`` is passed over.
"""

from __future__ import annotations

from dreambooth_core.families.names.record import (
    DIFFUSERS,
    FLAT,
    TABLES,
    LayerNames,
    Variant,
    qkv,
)

BLOCKS = ("layers.#", "noise_refiner.#", "context_refiner.#")
_SAME = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "adaLN_modulation.0")

NAMES = LayerNames(
    family="z_image",
    label="Z-Image",
    lokr_in_diffusers=True,
    layers={
        **{f"{block}.attention.to_out.0": f"{block}.attention.out" for block in BLOCKS},
        **{f"{block}.{layer}": f"{block}.{layer}" for block in BLOCKS for layer in _SAME},
        "all_x_embedder.2-1": "x_embedder",
        "all_final_layer.2-1.linear": "final_layer.linear",
        "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
        "cap_embedder.1": "cap_embedder.1",
        "t_embedder.mlp.0": "t_embedder.mlp.0",
        "t_embedder.mlp.2": "t_embedder.mlp.2",
    },
    fused=tuple(qkv(f"{block}.attention.qkv", f"{block}.attention") for block in BLOCKS),
    hosts={
        "Forge Neo": TABLES,
        "ComfyUI": TABLES,
        "diffusers": (
            ("transformer.", DIFFUSERS),
            ("diffusion_model.", DIFFUSERS),
            ("lora_unet_", DIFFUSERS),
            FLAT,
        ),
    },
    comfyui=DIFFUSERS,
    variants=(Variant(3840, {"layers": 30, "noise_refiner": 2, "context_refiner": 2}),),
    ratios={f"{block}.attention.qkv": 3 for block in BLOCKS},
    base_version="zimage",
)
