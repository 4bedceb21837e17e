"""Anima, and Cosmos-Predict2 whose transformer it is.

The hosts know their own names alone. The text conditioner is a network of its own in diffusers,
a part of the denoiser (``llm_adapter``) in ComfyUI, and of the text encoder in Forge Neo.
"""

from __future__ import annotations

from dreambooth_core.families.names.record import DIFFUSERS, GENERIC, LayerNames, Variant

_BLOCK, _NATIVE = "transformer_blocks.#", "blocks.#"
_INSIDE = {
    **{
        f"attn{n}.{part}": f"{kind}_attn.{own}"
        for n, kind in ((1, "self"), (2, "cross"))
        for part, own in (
            ("to_q", "q_proj"),
            ("to_k", "k_proj"),
            ("to_v", "v_proj"),
            ("to_out.0", "output_proj"),
        )
    },
    **{
        f"norm{n}.linear_{m}": f"adaln_modulation_{kind}.{m}"
        for n, kind in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp"))
        for m in (1, 2)
    },
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
_CONDITIONER = (
    *(f"{kind}_attn.{part}_proj" for kind in ("self", "cross") for part in "qkvo"),
    *("mlp.0", "mlp.2"),
)
CONDITIONER = "text_conditioner."
"""Where diffusers' names of the conditioner begin."""

_TRANSFORMER = {
    **{f"{_BLOCK}.{layer}": f"{_NATIVE}.{own}" for layer, own in _INSIDE.items()},
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
}

NAMES = LayerNames(
    family="anima",
    label="Anima",
    layers={
        **_TRANSFORMER,
        **{
            f"{CONDITIONER}blocks.#.{layer}": f"llm_adapter.blocks.#.{layer}"
            for layer in _CONDITIONER
        },
        f"{CONDITIONER}out_proj": "llm_adapter.out_proj",
    },
    hosts={
        "Forge Neo": GENERIC,
        "ComfyUI": GENERIC,
        "diffusers": (
            ("transformer.", DIFFUSERS),
            ("", DIFFUSERS),
            ("diffusion_model.", "native"),
        ),
    },
    few={"Forge Neo": frozenset(_TRANSFORMER)},
    written="kohya",
    variants=(Variant(2048, {"transformer_blocks": 28}),),
    # LTX-Video, of as many blocks as wide, reads a text as wide as itself.
    ratios={f"transformer_blocks.#.attn2.to_{part}": 2 for part in "kv"},
    base_version="anima",
    beside=CONDITIONER,
    llm_hosts=("ComfyUI", "Forge Neo"),
)
