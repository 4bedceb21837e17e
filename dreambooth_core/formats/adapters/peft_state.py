"""From the layers that peft has put into a model to :class:`Weights`, with the true alpha."""

from __future__ import annotations

from typing import Any

from torch import nn

from dreambooth_core.errors import Unsupported
from dreambooth_core.families.names import unet
from dreambooth_core.formats.adapters.model import LohaWeights, LokrWeights, Weights
from dreambooth_core.formats.adapters.peft_config import PeftSettings
from dreambooth_core.formats.adapters.tails import Piece

_HELD = {
    "lora_A": "down",
    "lora_B": "up",
    **{
        name: name
        for name in (
            *("lora_magnitude_vector", "oft_R"),
            *LohaWeights.TAILS.values(),
            *LokrWeights.TAILS.values(),
        )
        if "_" in name
    },
}
"""Where peft's layers keep tensors by adapter, and the tails of these."""
_OTHERS = ("lora_embedding_A", "boft_R", "ia3_l", "vera_lambda_d")


def from_peft(
    component: str, model: nn.Module, adapter_name: str = "default"
) -> dict[str, Weights]:
    """The adapter's weights by canonical name, as copies on the CPU in their own dtype.

    ``component``: ``unet``, ``text_encoder`` or ``text_encoder_2``. The scale comes from the
    layer itself, so alpha is right also with rsLoRA or patterns of ranks.

    Raises:
        Unsupported: a layer has an adapter of a kind that no file layout holds.
    """
    pieces = (
        _piece(component, path, layer, adapter_name)
        for path, layer in model.named_modules()
        if hasattr(layer, "base_layer")
    )
    return {piece.name: piece.assemble(strict=False) for piece in pieces if piece is not None}


def take_off(model: nn.Module) -> None:
    """Takes everything that peft has put into a model off; what it was put on is untouched."""
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "base_layer"):
            model.set_submodule(name, layer.get_base_layer())
    for attribute in ("peft_config", "_hf_peft_config_loaded"):
        vars(model).pop(attribute, None)


def canonical(component: str, path: str) -> str:
    """A module's path as adapters have it, from that in a model, which may be wrapped."""
    for wrapper in ("base_model.model.", "_orig_mod.", "module."):
        path = path.removeprefix(wrapper)
    flat = unet.flat_name(path)
    known = unet.unet_path(flat) if component == "unet" else unet.text_path(flat)
    return known or path


def names_in(component: str, model: nn.Module) -> dict[str, str]:
    """A model's modules: their own names by the paths that adapters have, and by themselves."""
    own = [name for name, _ in model.named_modules()]
    return {name: name for name in own} | {canonical(component, name): name for name in own}


def _piece(component: str, path: str, layer: Any, adapter: str) -> Piece | None:
    held = {
        tail: getattr(layer, name)[adapter]
        for name, tail in _HELD.items()
        if adapter in getattr(layer, name, ())
    }
    if not held:
        other = next((name for name in _OTHERS if adapter in getattr(layer, name, ())), None)
        if other is not None:
            raise Unsupported(f"{path} has an adapter of a kind that cannot be saved ({other})")
        return None
    if getattr(held.get("up"), "bias", None) is not None:
        raise Unsupported(f"{path} has a LoRA with a bias, which no file layout of the hosts holds")
    terms = 0
    if rotation := held.get("oft_R"):
        if any(size > 1 for size in layer.get_base_layer().weight.shape[2:]):
            # peft turns overlapping patches and adds them up again: no weight does the same.
            raise Unsupported(
                f"{path} has peft's OFT on a k x k convolution, which is not a weight change",
                do="Train OFT on linear layers and 1 x 1 convolutions.",
            )
        terms = int(rotation.num_cayley_neumann_terms) if rotation.use_cayley_neumann else 0
    alphas = getattr(layer, "lora_alpha", None) or getattr(layer, "alpha", None) or {}
    settings = PeftSettings(
        rank=int(layer.r[adapter]),
        alpha=alphas.get(adapter),
        rank_stabilised=getattr(layer, "use_rslora", {}).get(adapter, False),
        neumann_terms=terms,
    )
    tensors = {
        tail: getattr(value, "weight", value).detach().to("cpu", copy=True).contiguous()
        for tail, value in held.items()
    }
    return Piece(f"{component}.{canonical(component, path)}", tensors, settings)
