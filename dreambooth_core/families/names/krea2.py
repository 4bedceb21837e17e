"""Krea 2: other names on both sides, nothing fused."""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, TABLES, LayerNames, Variant

BLOCKS = {
    "transformer_blocks.#": "blocks.#",
    "text_fusion.layerwise_blocks.#": "txtfusion.layerwise_blocks.#",
    "text_fusion.refiner_blocks.#": "txtfusion.refiner_blocks.#",
}
_INSIDE = {
    "attn.to_q": "attn.wq",
    "attn.to_k": "attn.wk",
    "attn.to_v": "attn.wv",
    "attn.to_gate": "attn.gate",
    "attn.to_out.0": "attn.wo",
    "ff.gate": "mlp.gate",
    "ff.up": "mlp.up",
    "ff.down": "mlp.down",
}
NAMES = LayerNames(
    family="krea2",
    label="Krea 2",
    layers={
        **{
            f"{block}.{layer}": f"{native}.{own}"
            for block, native in BLOCKS.items()
            for layer, own in _INSIDE.items()
        },
        "img_in": "first",
        "final_layer.linear": "last.linear",
        "time_embed.linear_1": "tmlp.0",
        "time_embed.linear_2": "tmlp.2",
        "time_mod_proj": "tproj.1",
        "txt_in.linear_1": "txtmlp.1",
        "txt_in.linear_2": "txtmlp.3",
        "text_fusion.projector": "txtfusion.projector",
    },
    hosts={
        "Forge Neo": TABLES,
        "ComfyUI": TABLES,
        "diffusers": (("transformer.", DIFFUSERS), ("diffusion_model.", "native")),
    },
    variants=(Variant(6144, {"transformer_blocks": 28}),),
    ratios={"transformer_blocks.#.attn.to_k": 0.25, "transformer_blocks.#.attn.to_v": 0.25},
    base_version="krea2",
)
