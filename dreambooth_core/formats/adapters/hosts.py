"""Which of an adapter file's keys each host loads; what it does not load it passes over in silence.

Read from the hosts' sources: ComfyUI's ``comfy/lora.py`` and ``weight_adapter``, Forge's and Forge
Neo's copies of them, A1111's ``extensions-builtin/Lora``, diffusers' ``loaders``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.families.names import HOSTS, FamilyNames, UNetNames, record_of
from dreambooth_core.families.names.unet import flat_name
from dreambooth_core.formats import storage
from dreambooth_core.formats.adapters import tails
from dreambooth_core.formats.adapters.naming import family_of_keys

SHOWN = 3
FORGE_GIVES_UP = 12
"""Forge leaves a file out altogether once more keys than this are left over."""

_LORA = r"lora_(?:up|down|mid)\.weight|alpha|dora_scale"
_LYCORIS = r"hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2|diff|diff_b|w_norm|b_norm"
_PEFT = r"lora_[AB]\.weight"
_OLD = r"lora\.(?:up|down)\.weight|lora_linear_layer\.(?:up|down)\.weight"
_COMFYUI = re.compile(
    rf"{_LORA}|{_LYCORIS}|{_PEFT}|{_OLD}|lora_[AB](?:\.default\.weight)?|oft_blocks|rescale|"
    "a[12]\\.weight|b[12]\\.weight|set_weight|reshape_weight"
)
_TAILS = {
    "A1111": re.compile(rf"{_LORA}|{_LYCORIS}|{_PEFT}|oft_blocks|oft_diag|rescale"),
    "Forge": re.compile(rf"{_LORA}|{_LYCORIS}|{_PEFT}|{_OLD}|a[12]\.weight|b[12]\.weight"),
    "Forge Neo": _COMFYUI,
    "ComfyUI": _COMFYUI,
    "diffusers": re.compile(rf"{_LORA}|{_PEFT}|{_OLD}|lora_magnitude_vector(?:\.weight)?"),
}
_CLIP = re.compile(r"(?:text_model_)?encoder_layers_[0-9]+_(?:self_attn_\w+|mlp_fc[12])")
_T5 = re.compile(
    r"lora_te([123])_encoder_block_[0-9]+_layer_[01]_(?:SelfAttention_[qkvo]|DenseReluDense_\w+)"
)
_LLM = re.compile(r"lora_te_layers_[0-9]+_(?:self_attn_[qkvo]_proj|mlp_\w+)")


@dataclass(frozen=True)
class Loads:
    """What a host does with a file."""

    host: str
    total: int
    loaded: int = 0
    missed: tuple[str, ...] = ()
    """The first keys that it passes over."""
    runs: bool | None = True
    """Whether it runs this family at all; ``None`` if the family is not known."""

    @property
    def text(self) -> str:
        """For a person."""
        if self.runs is None:
            return "not known"
        if not self.runs:
            return "does not run this family"
        text = f"loads {self.loaded} of {self.total} keys"
        if self.missed:
            more = ", …" if self.total - self.loaded > len(self.missed) else ""
            text += f", not {', '.join(self.missed)}{more}"
        return text

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**vars(self), "missed": list(self.missed), "text": self.text}


def judge(shapes: Mapping[str, tuple[int, ...]], family: str | None) -> list[Loads]:
    """Each host's answer to a file with these keys; ``family`` as the reader found it."""
    keys = sorted(key for key in shapes if not key.startswith("bundle_emb."))
    names = record_of(family)
    if names is None and (found := family_of_keys(shapes)):
        names = found[0]
    return [_loads(host, keys, names) for host in HOSTS]


def unheard(table: Sequence[Mapping[str, Any]]) -> str | None:
    """A warning where hosts that run the family would pass over a part of the file."""
    partly = [
        f"{each['host']} {each['text']}"
        for each in table
        if each["runs"] and each["loaded"] < each["total"]
    ]
    return f"not every host loads the whole adapter: {'; '.join(partly)}" if partly else None


def _loads(host: str, keys: list[str], names: FamilyNames | None) -> Loads:
    total = len(keys)
    if names is None:
        return Loads(host, total, runs=None)
    if not names.runs_on(host):
        return Loads(host, total, runs=False)
    missed = [key for key in keys if not _loads_key(host, key, names)]
    if host == "Forge" and len(missed) > FORGE_GIVES_UP:
        missed = keys
    return Loads(host, total, total - len(missed), tuple(missed[:SHOWN]))


def _loads_key(host: str, key: str, names: FamilyNames) -> bool:
    cut = tails.split(key)
    if cut is None:
        return False
    raw = cut[0]
    tail = key[len(raw) + 1 :]
    if ".processor." in key or "_lora." in key:
        # diffusers' first names, which ComfyUI's and Forge's tables have for UNets.
        old = ".processor.to_" in key and key.startswith(("unet.", "down_", "mid_", "up_"))
        return old and isinstance(names, UNetNames) and host != "A1111"
    if not _TAILS[host].fullmatch(tail):
        lokr = host == "diffusers" and names.lokr_in_diffusers
        if not (lokr and tail.startswith(("lokr_", "alpha"))):
            return False
    if host == "diffusers" and not _diffusers_takes(raw, tail, names):
        return False
    return names.loads(raw, host) or _text_loads(host, raw, names)


def _diffusers_takes(raw: str, tail: str, names: FamilyNames) -> bool:
    """diffusers raises or filters where tails and prefix do not go together."""
    if tail == "dora_scale" or (tail == "alpha" and raw.startswith("transformer.")):
        return False
    peft = ("lora_A", "lora_B") if isinstance(names, UNetNames) else ()
    return "." in raw or not tail.startswith(("lora_magnitude", *peft))


def _text_loads(host: str, raw: str, names: FamilyNames) -> bool:
    """A text encoder's layers, under the names of each host's table."""
    comfyui = host in ("ComfyUI", "Forge Neo")
    if match := _T5.fullmatch(raw):
        return (comfyui and match[1] in names.t5) or (host == "Forge" and match[1] in "23")
    if _LLM.fullmatch(raw):
        return host in names.llm_hosts
    if comfyui and raw.startswith("text_encoders.") and ".transformer." in raw:
        return True
    prefixes = ["lora_te1_"]
    if host in ("ComfyUI", "Forge", "Forge Neo") or not names.clips:
        prefixes.append("lora_te_")
    if host != "A1111":
        prefixes.append("text_encoder.")
    if names.clips > 1:
        prefixes += ["lora_te2_", *(["text_encoder_2."] if host != "A1111" else [])]
    for prefix in prefixes:
        rest = raw.removeprefix(prefix)
        if rest != raw and not (prefix.endswith("_") and "." in rest):
            return bool(_CLIP.fullmatch(flat_name(rest)))
    return False


def host_table(path: Path, family: str | None) -> list[dict[str, Any]]:
    """Each host's answer to a file; empty for a folder or pickle, which hosts take otherwise."""
    if path.is_dir() or path.suffix.lower() != ".safetensors":
        return []
    header = storage.read_header(path)
    shapes = {key: tuple(entry.shape) for key, entry in header.tensors.items()}
    return [each.as_dict() for each in judge(shapes, family)]
