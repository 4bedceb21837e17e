"""Stable Diffusion 1, 2 and XL: what each is called in adapters' files, and what hosts load.

A UNet's layers have names of their own kind (``families.names.unet``); every host loads kohya's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dreambooth_core.families.names.record import HOSTS, FamilyNames
from dreambooth_core.families.names.unet import USUAL_LEVELS, flat_name, unet_path

_DIFFUSERS = re.compile(r"(?:down_blocks|up_blocks|mid_block|conv_|time_emb|add_emb)")
_KEY_OR_VALUE = re.compile(r"to_[kv](?=[._])")
_LAYER = re.compile(r"(?:down_blocks|up_blocks|mid_block|(?:in|out)put_blocks|middle_block)[._]")
_WIDE = (".lora_down.", ".lora_A.", "lora.down.", "hada_w1_b")
_SECOND_ENCODER = ("lora_te2_", "text_encoder_2.")


@dataclass(frozen=True, kw_only=True)
class UNetNames(FamilyNames):
    """What is known of the adapters of one family."""

    width: int
    """Of the text that cross-attention takes."""
    is_numbered: bool = False
    """Whether hosts know its layers by LDM's block numbers alone."""
    attention_levels: frozenset[int] = USUAL_LEVELS
    """Which ``up_blocks`` of the real models have attention."""
    hosts: tuple[str, ...] = HOSTS
    loader: str = "StableDiffusionLoraLoaderMixin"
    """diffusers' class that loads its adapters."""
    hub_tag: str = "stable-diffusion"
    implementation: str = "https://github.com/Stability-AI/StableDiffusion"

    def runs_on(self, host: str) -> bool:
        return host in self.hosts

    def loads(self, raw: str, host: str) -> bool:
        for prefix in ("lora_unet_", "lycoris_"):
            rest = raw.removeprefix(prefix)
            if rest == raw or "." in rest:
                continue
            kohya = prefix == "lora_unet_"
            lycoris = host not in ("A1111", "diffusers") and bool(_DIFFUSERS.match(rest))
            return (kohya or lycoris) and unet_path(rest) is not None
        if host == "diffusers":
            return raw.startswith("unet.") and unet_path(flat_name(raw[5:])) is not None
        if host == "A1111" or not raw.startswith("diffusion_model."):
            return False
        rest = flat_name(raw[len("diffusion_model.") :])
        return not _DIFFUSERS.match(rest) and unet_path(rest) is not None


STABLE_DIFFUSION = (
    UNetNames(
        family="sdxl",
        label="Stable Diffusion XL",
        base_version="sdxl_base_v1-0",
        versions=("sdxl",),
        architecture="stable-diffusion-xl-v1-base/lora",
        known_by="stable-diffusion-xl",
        marks={"ss_v2": "False"},
        hub_tag="stable-diffusion-xl",
        clips=2,
        width=2048,
        is_numbered=True,
        attention_levels=frozenset({0, 1}),
        loader="StableDiffusionXLLoraLoaderMixin",
    ),
    UNetNames(
        family="sd2",
        label="Stable Diffusion 2",
        base_version="sd_v2",
        versions=("sd_v2",),
        architecture="stable-diffusion-v2-512/lora",
        known_by="stable-diffusion-v2",
        marks={"ss_v2": "True"},
        text_prefix="lora_te",
        width=1024,
        hosts=tuple(host for host in HOSTS if host != "Forge Neo"),
    ),
    UNetNames(
        family="sd1",
        label="Stable Diffusion 1",
        base_version="sd_v1",
        versions=("sd_v1", "sd_1"),
        architecture="stable-diffusion-v1/lora",
        known_by="stable-diffusion-v1",
        marks={"ss_v2": "False"},
        text_prefix="lora_te",
        width=768,
    ),
)
"""In the order in which metadata are asked."""
REFINER = "sdxl_refiner"
LABELS = {
    **{names.family: names.label for names in STABLE_DIFFUSION},
    REFINER: "Stable Diffusion XL refiner",
}
_WIDTHS = {**{names.width: names.family for names in STABLE_DIFFUSION}, 1280: REFINER}


def of_width(width: int) -> str | None:
    """The family whose text is so wide."""
    return _WIDTHS.get(width)


def of_keys(shapes: Mapping[str, Sequence[int]]) -> tuple[str | None, bool]:
    """``(the family, whether this is an adapter of a UNet at all)`` by the names and shapes in an
    adapter's file: the width of the text that cross-attention takes tells most."""
    for name, shape in shapes.items():
        wide = any(part in name for part in _WIDE) or name.endswith(".diff")
        stable = "transformer_blocks" in name and _LAYER.search(name)
        if wide and stable and len(shape) > 1 and "attn2" in name and _KEY_OR_VALUE.search(name):
            found = of_width(int(shape[1]))
            if found:
                return found, True
    if any(_LAYER.search(name) for name in shapes):
        two = any(name.startswith(_SECOND_ENCODER[0]) for name in shapes)
        return ("sdxl" if two else None), True
    return None, False


def has_second_encoder(names: Iterable[str]) -> bool:
    """Whether keys are of XL's second text encoder."""
    return any(n.startswith(_SECOND_ENCODER[0]) or _SECOND_ENCODER[1] in n for n in names)


def of_modules(inputs: Mapping[str, int | None]) -> str | None:
    """The family by an adapter's modules, in diffusers' names, and by their inputs where these are
    known."""
    if any(n.startswith(("text_encoder_2.", "unet.add_embedding")) for n in inputs):
        return "sdxl"
    families = {names.width: names.family for names in STABLE_DIFFUSION}
    for name, width in inputs.items():
        if width is None:
            continue
        if name.startswith("unet.") and name.endswith((".attn2.to_k", ".attn2.to_v")):
            return families.get(width)
        text = name.startswith("text_encoder.") and name.endswith((".q_proj", ".mlp.fc1"))
        if text and width in families:
            return families[width]
    depths = [
        int(n.split(".transformer_blocks.")[1].split(".")[0])
        for n in inputs
        if n.startswith("unet.") and ".transformer_blocks." in n
    ]
    return "sdxl" if depths and max(depths) > 0 else None
