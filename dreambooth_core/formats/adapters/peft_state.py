"""From the layers that peft has put into a model to :class:`Weights`, with the true alpha."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dreambooth_core.errors import Unsupported
from dreambooth_core.formats.adapters import names
from dreambooth_core.formats.adapters.model import (
    LohaWeights,
    LokrWeights,
    LoraWeights,
    Weights,
)
from dreambooth_core.formats.adapters.tails import oft_from_vectors, scaled_full_lokr


def from_peft(
    component: str, model: nn.Module, adapter_name: str = "default"
) -> dict[str, Weights]:
    """The adapter's weights by canonical name, as copies on the CPU in their own dtype.

    ``component``: ``unet``, ``text_encoder`` or ``text_encoder_2``. The scale comes from the
    layer itself, so alpha is right also with rsLoRA or patterns of ranks.

    Raises:
        Unsupported: a layer has an adapter of a kind that no file layout holds.
    """
    found: dict[str, Weights] = {}
    for path, layer in model.named_modules():
        if not hasattr(layer, "base_layer"):
            continue
        weights = _of_layer(path, layer, adapter_name)
        if weights is not None:
            found[f"{component}.{canonical(component, path)}"] = weights
    return found


def canonical(component: str, path: str) -> str:
    for wrapper in ("base_model.model.", "_orig_mod.", "module."):
        path = path.removeprefix(wrapper)
    flat = names.flat_name(path)
    known = names.unet_path(flat) if component == "unet" else names.text_path(flat)
    return known or path


def _of_layer(path: str, layer: Any, adapter: str) -> Weights | None:
    if adapter in getattr(layer, "lora_A", ()):
        return _lora(path, layer, adapter)
    if adapter in getattr(layer, "hada_w1_a", ()):
        fields = _fields(layer, adapter, "hada_", ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2"))
        rank = int(fields["w1_b"].shape[0])
        return LohaWeights(**fields, alpha=_alpha(layer, adapter, rank))
    if adapter in getattr(layer, "lokr_w1", ()) or adapter in getattr(layer, "lokr_w1_a", ()):
        kinds = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
        lokr = LokrWeights(**_fields(layer, adapter, "lokr_", kinds))
        if not lokr.rank:
            return scaled_full_lokr(lokr, _alpha(layer, adapter, 1))
        lokr.alpha = _alpha(layer, adapter, lokr.rank)
        return lokr
    if adapter in getattr(layer, "oft_R", ()):
        if any(size > 1 for size in layer.get_base_layer().weight.shape[2:]):
            # peft turns overlapping patches and adds them up again: no weight does the same.
            raise Unsupported(
                f"{path} has peft's OFT on a k x k convolution, which is not a weight change",
                do="Train OFT on linear layers and 1 x 1 convolutions.",
            )
        module = layer.oft_R[adapter]
        terms = int(module.num_cayley_neumann_terms) if module.use_cayley_neumann else 0
        return oft_from_vectors(_copy(module.weight), int(module.block_size), terms)
    others = [
        n
        for n in ("lora_embedding_A", "boft_R", "ia3_l", "vera_lambda_d")
        if adapter in getattr(layer, n, ())
    ]
    if others:
        raise Unsupported(f"{path} has an adapter of a kind that cannot be saved ({others[0]})")
    return None


def _lora(path: str, layer: Any, adapter: str) -> LoraWeights:
    down, up = layer.lora_A[adapter], layer.lora_B[adapter]
    if getattr(up, "bias", None) is not None:
        raise Unsupported(f"{path} has a LoRA with a bias, which no file layout of the hosts holds")
    magnitude = getattr(layer, "lora_magnitude_vector", {})
    dora = None
    if adapter in magnitude:
        vector = magnitude[adapter]
        dora = _copy(getattr(vector, "weight", vector))
        dora = dora.reshape(-1, *[1] * (down.weight.ndim - 1))
    alpha = _alpha(layer, adapter, int(down.weight.shape[0]))
    return LoraWeights(_copy(down.weight), _copy(up.weight), alpha, dora_scale=dora)


def _alpha(layer: Any, adapter: str, rank: int) -> float:
    """alpha so that alpha / ``rank`` is the configured scale, whatever weight it runs at now."""
    alphas = getattr(layer, "lora_alpha", None) or getattr(layer, "alpha", None)
    if alphas is None or adapter not in alphas:
        return float(layer.scaling[adapter]) * rank
    alpha, configured = float(alphas[adapter]), int(layer.r[adapter])
    if getattr(layer, "use_rslora", {}).get(adapter, False):
        return alpha / math.sqrt(configured) * rank
    return alpha if configured == rank else alpha / configured * rank


def _fields(layer: Any, adapter: str, prefix: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for kind in kinds:
        held: Mapping[str, Tensor] = getattr(layer, prefix + kind, {})
        if adapter in held:
            found[kind] = _copy(held[adapter])
    return found


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
