"""Sana. None of the hosts runs it; names as in its authors' checkpoints."""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, Fused, LayerNames, Variant, qkv

_BLOCK, _NATIVE = "transformer_blocks.#", "blocks.#"

NAMES = LayerNames(
    family="sana",
    label="Sana",
    layers={
        f"{_BLOCK}.attn1.to_out.0": f"{_NATIVE}.attn.proj",
        f"{_BLOCK}.attn2.to_q": f"{_NATIVE}.cross_attn.q_linear",
        f"{_BLOCK}.attn2.to_out.0": f"{_NATIVE}.cross_attn.proj",
        f"{_BLOCK}.ff.conv_inverted": f"{_NATIVE}.mlp.inverted_conv.conv",
        f"{_BLOCK}.ff.conv_depth": f"{_NATIVE}.mlp.depth_conv.conv",
        f"{_BLOCK}.ff.conv_point": f"{_NATIVE}.mlp.point_conv.conv",
        "patch_embed.proj": "x_embedder.proj",
        "time_embed.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
        "time_embed.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
        "time_embed.linear": "t_block.1",
        "caption_projection.linear_1": "y_embedder.y_proj.fc1",
        "caption_projection.linear_2": "y_embedder.y_proj.fc2",
        "proj_out": "final_layer.linear",
    },
    fused=(
        qkv(f"{_NATIVE}.attn.qkv", f"{_BLOCK}.attn1"),
        Fused(
            f"{_NATIVE}.cross_attn.kv_linear",
            tuple(f"{_BLOCK}.attn2.to_{part}" for part in "kv"),
            (1, 1),
        ),
    ),
    hosts={"diffusers": (("transformer.", DIFFUSERS),)},
    written="diffusers",
    variants=(
        Variant(2240, {"transformer_blocks": 20}),
        Variant(1152, {"transformer_blocks": 28}),
    ),
    base_version="sana",
)
