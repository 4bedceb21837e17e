"""Stable Diffusion 3 and 3.5.

ComfyUI cuts ``qkv`` at 64 rows a block (``mmdit_to_diffusers``), as every published size has it.
A1111 knows four layers of the image's side (``diffusers_weight_mapping`` in its ``sd3_model.py``:
the names of the text's side have a dot too many), and gives up a file with flat names at its first
``.alpha``.
"""

from __future__ import annotations

from dreambooth_core.families.names.record import (
    DIFFUSERS,
    GENERIC,
    Fused,
    LayerNames,
    Variant,
    qkv,
)

_BLOCK, _NATIVE = "transformer_blocks.#", "joint_blocks.#"
_TIME = "time_text_embed"


NAMES = LayerNames(
    family="sd3",
    label="Stable Diffusion 3",
    layers={
        f"{_BLOCK}.norm1.linear": f"{_NATIVE}.x_block.adaLN_modulation.1",
        f"{_BLOCK}.norm1_context.linear": f"{_NATIVE}.context_block.adaLN_modulation.1",
        f"{_BLOCK}.attn.to_out.0": f"{_NATIVE}.x_block.attn.proj",
        f"{_BLOCK}.attn.to_add_out": f"{_NATIVE}.context_block.attn.proj",
        f"{_BLOCK}.attn2.to_out.0": f"{_NATIVE}.x_block.attn2.proj",
        f"{_BLOCK}.ff.net.0.proj": f"{_NATIVE}.x_block.mlp.fc1",
        f"{_BLOCK}.ff.net.2": f"{_NATIVE}.x_block.mlp.fc2",
        f"{_BLOCK}.ff_context.net.0.proj": f"{_NATIVE}.context_block.mlp.fc1",
        f"{_BLOCK}.ff_context.net.2": f"{_NATIVE}.context_block.mlp.fc2",
        "pos_embed.proj": "x_embedder.proj",
        "context_embedder": "context_embedder",
        f"{_TIME}.timestep_embedder.linear_1": "t_embedder.mlp.0",
        f"{_TIME}.timestep_embedder.linear_2": "t_embedder.mlp.2",
        f"{_TIME}.text_embedder.linear_1": "y_embedder.mlp.0",
        f"{_TIME}.text_embedder.linear_2": "y_embedder.mlp.2",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
        "proj_out": "final_layer.linear",
    },
    fused=(
        qkv(f"{_NATIVE}.x_block.attn.qkv", f"{_BLOCK}.attn"),
        Fused(
            f"{_NATIVE}.context_block.attn.qkv",
            tuple(f"{_BLOCK}.attn.add_{part}_proj" for part in "qkv"),
        ),
        qkv(f"{_NATIVE}.x_block.attn2.qkv", f"{_BLOCK}.attn2"),
    ),
    swapped=frozenset({"norm_out.linear"}),
    hosts={
        "A1111": (("transformer.", DIFFUSERS),),
        "Forge": GENERIC,
        "ComfyUI": (
            *GENERIC,
            ("transformer.", DIFFUSERS),
            ("base_model.model.", DIFFUSERS),
            ("lora_transformer_", DIFFUSERS),
            ("lycoris_", DIFFUSERS),
        ),
        "diffusers": (("transformer.", DIFFUSERS),),
    },
    few={
        "A1111": frozenset(
            f"{_BLOCK}.attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")
        )
    },
    written="diffusers",
    variants=(
        Variant(1536, {"transformer_blocks": 24}),
        Variant(2432, {"transformer_blocks": 38}),
    ),
    base_version="sd3",
    clips=2,
    t5="3",
    architecture="stable-diffusion-3/lora",
)
