"""Single files of diffusion transformers: the denoiser, its text encoder, its autoencoder.

Told by keys and shapes alone. Quantisations that cannot be read are named, with what is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreambooth_core.families.names import Layer, LayerNames, variant_of
from dreambooth_core.families.names.keys import OTHERS, Shapes, family_of, prefix_of, sizes_of
from dreambooth_core.formats.quantised import ADVICE, quantised_by

_ENCODERS: tuple[tuple[str, int, str, str, str], ...] = (
    ("qwen3", 1024, "", "Qwen3 0.6B", "Anima"),
    ("qwen3", 2560, "", "Qwen3 4B", "Z-Image and Flux.2 Klein 4B"),
    ("qwen3", 4096, "", "Qwen3 8B", "Flux.2 Klein 9B"),
    ("qwen3", 2560, "vision", "Qwen3-VL 4B", "Krea 2"),
    ("qwen3", 4096, "vision", "Qwen3-VL 8B", "Ideogram 4"),
    ("qwen2", 3584, "", "Qwen2.5-VL 7B", "Qwen-Image"),
    ("qwen2", 3584, "vision", "Qwen2.5-VL 7B", "Qwen-Image"),
    ("gemma2", 2304, "", "Gemma 2 2B", "Lumina 2 and Sana"),
    ("llama", 5120, "", "Mistral Small 3", "Flux.2 dev"),
    ("llama", 5120, "vision", "Mistral Small 3", "Flux.2 dev"),
    ("llama", 4096, "", "Llama 3.1 8B", "HiDream"),
)
"""Architecture, width, whether it sees, its name, and whose text encoder it is."""

_AUTOENCODERS = {
    16: ("a VAE with 16 latent channels", "Flux.1, Chroma, Z-Image, Lumina 2, SD3"),
    32: ("a VAE with 32 latent channels", "Flux.2"),
}


@dataclass(frozen=True)
class Finding:
    """What a file is."""

    kind: str
    """``denoiser``, ``checkpoint``, ``text encoder``, ``vae`` or ``quantised``."""
    family: str | None
    label: str
    advice: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def look(shapes: Shapes, dtypes: Mapping[str, int]) -> Finding | None:
    """What this is, if it is one of these; ``None`` otherwise."""
    found, method = family_of(shapes), quantised_by(shapes)
    family = found[0].family if found is not None else None
    name = _called(shapes, *found) if found is not None else ""
    label = f"{name} denoiser" if found is not None else "model"
    if method is not None:
        return Finding("quantised", family, f"a {label} quantised by {method}", ADVICE)
    eight = _eight_bit(shapes, dtypes)
    details: dict[str, Any] = {"quantisation": eight} if eight else {}
    if found is not None:
        vae = ("vae.", "first_stage_model.")
        others = (key for key in shapes if key.startswith(OTHERS))
        rest = sorted({"vae" if key.startswith(vae) else "text encoder" for key in others})
        if not rest:
            return Finding("denoiser", family, f"a {label}", None, details)
        details["parts"] = ["denoiser", *rest]
        return Finding("checkpoint", family, f"a {name} model", None, details)
    part = _text_encoder(shapes) or _autoencoder(shapes)
    return None if part is None else Finding(*part, None, details)


def _called(shapes: Shapes, names: LayerNames, layers: Mapping[str, Layer]) -> str:
    """A denoiser's name: its family's, or that of its size."""
    prefix = prefix_of(shapes)
    found = {name.removeprefix(prefix): layer for name, layer in layers.items()}
    variant = variant_of(names, found, sizes_of(shapes, prefix))
    return (variant.label if variant else "") or names.label


def _eight_bit(shapes: Shapes, dtypes: Mapping[str, int]) -> str | None:
    kinds = [kind for kind in dtypes if kind.upper().startswith(("F8", "FLOAT8"))]
    if not kinds:
        return None
    scaled = any(key.endswith((".scale_weight", ".weight_scale")) for key in shapes)
    return f"fp8 ({', '.join(sorted(kinds))}){', with scales' if scaled else ''}"


def _text_encoder(shapes: Shapes) -> tuple[str, str | None, str] | None:
    attention = next((k for k in shapes if k.endswith("layers.0.self_attn.k_proj.weight")), None)
    if attention is None or len(shapes[attention]) != 2:
        return None
    base = attention.removesuffix("self_attn.k_proj.weight")
    if f"{base}mlp.gate_proj.weight" not in shapes:  # CLIP, and checkpoints with one
        return None
    width = int(shapes[attention][1])
    if f"{base}pre_feedforward_layernorm.weight" in shapes:
        kind = "gemma2"
    elif f"{base}self_attn.q_norm.weight" in shapes:
        kind = "qwen3"
    elif f"{base}self_attn.q_proj.bias" in shapes:
        kind = "qwen2"
    else:
        kind = "llama"
    sight = "vision" if any("visual." in key or "vision_" in key for key in shapes) else ""
    for entry in _ENCODERS:
        if entry[:3] == (kind, width, sight):
            return "text encoder", None, f"a text encoder, {entry[3]} ({entry[4]})"
    return "text encoder", None, f"a language model {width} wide, no text encoder that is known"


def _autoencoder(shapes: Shapes) -> tuple[str, str | None, str] | None:
    if "decoder.middle.0.residual.0.gamma" in shapes or "decoder.conv1.weight" in shapes:
        return "vae", None, "a VAE for images and video (Wan, Qwen-Image, Krea 2, Anima)"
    if any(key.startswith("decoder.stages.") for key in shapes):
        return "vae", None, "a deep compression autoencoder (Sana)"
    for prefix in ("", "first_stage_model.", "vae."):
        first = shapes.get(f"{prefix}decoder.conv_in.weight", ())
        if len(first) == 4 and int(first[1]) in _AUTOENCODERS:
            label, whose = _AUTOENCODERS[int(first[1])]
            return "vae", None, f"{label} ({whose})"
    return None
