"""Chroma: Flux.1 with a network in place of the modulations; the shared layers have equal names,
so an adapter that changes no other layer loads on both and reads as Flux.1's. Forge's table of
diffusers' names is for models with "flux" in their name alone."""

from __future__ import annotations

from dreambooth_core.families.names import flux
from dreambooth_core.families.names.record import GENERIC, LayerNames

_GUIDE = "distilled_guidance_layer"
_GUIDING = {
    f"{_GUIDE}.in_proj": f"{_GUIDE}.in_proj",
    f"{_GUIDE}.out_proj": f"{_GUIDE}.out_proj",
    f"{_GUIDE}.layers.#.linear_1": f"{_GUIDE}.layers.#.in_layer",
    f"{_GUIDE}.layers.#.linear_2": f"{_GUIDE}.layers.#.out_layer",
}

NAMES = LayerNames(
    family="chroma",
    label="Chroma",
    layers={
        **flux.DOUBLE,
        **flux.SINGLE,
        "proj_out": "final_layer.linear",
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        **_GUIDING,
    },
    fused=flux.NAMES.fused,
    unknown_to_hosts=frozenset(_GUIDING),
    hosts={**flux.NAMES.hosts, "Forge": GENERIC},
    written="diffusers",
    variants=flux.NAMES.variants,
    ratios=flux.NAMES.ratios,
    known_by="chroma",
    t5="1",
    base_version="chroma",
)
