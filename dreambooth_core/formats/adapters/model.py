"""An adapter in memory: one set of names and one set of meanings, whatever file it came from.

Module names are diffusers' paths behind the component's name, for example
``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q`` or
``text_encoder.text_model.encoder.layers.0.self_attn.q_proj`` (always with ``text_model``). Layers
of diffusion transformers are ``transformer.…``, what no family has is ``other.…`` (``naming``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce

import torch
from torch import Tensor

from dreambooth_core.formats.adapters.relatives import LohaWeights, LokrWeights, OftWeights
from dreambooth_core.formats.adapters.weights import DiffWeights, LoraWeights, Weights

# Of what is defined elsewhere.
__all__ = ["DiffWeights", "LohaWeights", "LokrWeights", "LoraWeights", "OftWeights", "Weights"]

NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2")
COMPONENTS = (*NETWORKS, "other")


@dataclass(eq=False)
class Adapter:
    """What an adapter file says."""

    modules: dict[str, Weights]
    metadata: dict[str, str] = field(default_factory=dict)
    family: str | None = None
    """``sd1``, ``sd2``, ``sdxl``, ``flux`` …; ``None`` if the file does not tell."""
    layers_per_block: int = 2
    """Resblocks per level of the UNet: LDM's block numbers (SDXL) depend on it."""
    extras: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that ride along, such as embeddings bundled for A1111 (``bundle_emb.…``)."""
    skipped: list[str] = field(default_factory=list)
    """Names in the file that belong to no known module; only with a lenient reader."""

    @property
    def method(self) -> str:
        """``lora``, ``locon``, ``dora``, ``loha``, ``lokr``, ``oft``, ``diff``, or ``a+b``."""
        kinds = {kind_of(w) for w in self.modules.values()}
        if "locon" in kinds:
            kinds.discard("lora")
        return "+".join(sorted(kinds)) or "empty"

    @property
    def dtype(self) -> torch.dtype:
        """The widest floating-point type in the file; fp32 for an empty one."""
        kinds = [weights.dtype for weights in self.modules.values()]
        return reduce(torch.promote_types, kinds) if kinds else torch.float32

    @property
    def components(self) -> list[str]:
        """The models that it changes, in the usual order."""
        present = {component_of(name) for name in self.modules}
        return [c for c in COMPONENTS if c in present]

    def of(self, component: str) -> Iterator[tuple[str, Weights]]:
        """``(path inside the component, weights)`` of one component."""
        for name, weights in self.modules.items():
            if component_of(name) == component:
                yield name.split(".", 1)[1], weights

    def with_modules(self, modules: Mapping[str, Weights]) -> Adapter:
        """The same adapter with other modules."""
        return replace(self, modules=dict(modules), metadata=dict(self.metadata))

    def to(self, dtype: torch.dtype) -> Adapter:
        """The same adapter in another floating-point type."""
        return self.with_modules({name: w.to(dtype) for name, w in self.modules.items()})


def component_of(name: str) -> str:
    """One of :data:`COMPONENTS`."""
    return name.split(".", 1)[0]


def kind_of(weights: Weights) -> str:
    """The method by its usual name: a LoRA on k x k convolutions is a LoCon."""
    if weights.dora_scale is not None:
        return "dora" if weights.method == "lora" else f"{weights.method}-dora"
    if isinstance(weights, LoraWeights) and (
        weights.mid is not None or any(size > 1 for size in weights.down.shape[2:])
    ):
        return "locon"
    if isinstance(weights, OftWeights) and weights.blocks.ndim == 4:
        return "boft"
    return weights.method


def block_of(name: str) -> str:
    """The block that weights per block speak of: ``unet.down_blocks.1``, ``text_encoder.layers.3``.

    What stands in no block (``conv_in``, ``time_embedding``, embeddings) is ``<component>.other``.
    """
    component, *path = name.split(".")
    if component == "other":
        return component
    if component.startswith("text_encoder"):
        path = path[path.index("layers") :] if "layers" in path else []
    if path[:1] == ["mid_block"]:
        return "unet.mid_block"
    numbered = path[1:2] and path[1].isdigit()
    return ".".join((component, *path[:2])) if numbered else f"{component}.other"
