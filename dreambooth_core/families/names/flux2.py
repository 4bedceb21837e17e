"""Flux.2 dev and Klein.

ComfyUI learned diffusers' names of the feed-forward and single layers late (after 0.3.64, where
they are passed over in silence), so the hosts' own names are written.
"""

from __future__ import annotations

from dreambooth_core.families.names.flux import IMAGE, TABLE, TEXT, TRANSFORMER
from dreambooth_core.families.names.record import DIFFUSERS, GENERIC, LayerNames, Variant

_SINGLE = "single_transformer_blocks"
_TIME = "time_guidance_embed"
_UNKNOWN = {
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    f"{_TIME}.timestep_embedder.linear_1": "time_in.in_layer",
    f"{_TIME}.timestep_embedder.linear_2": "time_in.out_layer",
    f"{_TIME}.guidance_embedder.linear_1": "guidance_in.in_layer",
    f"{_TIME}.guidance_embedder.linear_2": "guidance_in.out_layer",
}

NAMES = LayerNames(
    family="flux2",
    label="Flux.2",
    lokr_in_diffusers=True,
    layers={
        "transformer_blocks.#.attn.to_out.0": "double_blocks.#.img_attn.proj",
        "transformer_blocks.#.attn.to_add_out": "double_blocks.#.txt_attn.proj",
        "transformer_blocks.#.ff.linear_in": "double_blocks.#.img_mlp.0",
        "transformer_blocks.#.ff.linear_out": "double_blocks.#.img_mlp.2",
        "transformer_blocks.#.ff_context.linear_in": "double_blocks.#.txt_mlp.0",
        "transformer_blocks.#.ff_context.linear_out": "double_blocks.#.txt_mlp.2",
        f"{_SINGLE}.#.attn.to_qkv_mlp_proj": "single_blocks.#.linear1",
        f"{_SINGLE}.#.attn.to_out": "single_blocks.#.linear2",
        "proj_out": "final_layer.linear",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        **_UNKNOWN,
    },
    fused=(IMAGE, TEXT),
    swapped=frozenset({"norm_out.linear"}),
    unknown_to_hosts=frozenset(_UNKNOWN),
    hosts={
        "Forge Neo": TABLE,
        "ComfyUI": TABLE,
        "diffusers": (TRANSFORMER, *GENERIC, ("diffusion_model.", DIFFUSERS)),
    },
    variants=(
        Variant(6144, {"transformer_blocks": 8, _SINGLE: 48}, "Flux.2 dev"),
        Variant(3072, {"transformer_blocks": 5, _SINGLE: 20}, "Flux.2 Klein 4B"),
        Variant(4096, {"transformer_blocks": 8, _SINGLE: 24}, "Flux.2 Klein 9B"),
    ),
    ratios={
        f"{_SINGLE}.#.attn.to_qkv_mlp_proj": 9,
        "transformer_blocks.#.ff.linear_in": 6,
        "transformer_blocks.#.ff_context.linear_in": 6,
    },
    base_version="flux2",
)
