"""HiDream: the hosts' names are diffusers'."""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, GENERIC, LayerNames, Variant

_EXPERT = ("w1", "w2", "w3")
_IMAGE = (
    *(f"attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out")),
    "adaLN_modulation.1",
    "ff_i.gate",
    *(f"ff_i.shared_experts.{w}" for w in _EXPERT),
    *(f"ff_i.experts.{n}.{w}" for n in range(4) for w in _EXPERT),
)
_TEXT = (
    *(f"attn1.{part}_t" for part in ("to_q", "to_k", "to_v", "to_out")),
    *(f"ff_t.{w}" for w in _EXPERT),
)
_LAYERS = (
    *(f"double_stream_blocks.#.block.{layer}" for layer in (*_IMAGE, *_TEXT)),
    *(f"single_stream_blocks.#.block.{layer}" for layer in _IMAGE),
    "caption_projection.#.linear",
    "t_embedder.timestep_embedder.linear_1",
    "t_embedder.timestep_embedder.linear_2",
    "p_embedder.pooled_embedder.linear_1",
    "p_embedder.pooled_embedder.linear_2",
    "x_embedder.proj",
    "final_layer.adaLN_modulation.1",
    "final_layer.linear",
)

NAMES = LayerNames(
    family="hidream",
    label="HiDream",
    layers={layer: layer for layer in _LAYERS},
    hosts={
        "ComfyUI": (*GENERIC, ("transformer.", DIFFUSERS), ("lycoris_", DIFFUSERS)),
        "diffusers": (("transformer.", DIFFUSERS), ("diffusion_model.", DIFFUSERS)),
    },
    comfyui=DIFFUSERS,
    variants=(Variant(2560, {"double_stream_blocks": 16, "single_stream_blocks": 32}),),
    base_version="hidream",
)
