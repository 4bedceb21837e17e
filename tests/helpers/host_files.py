"""Tiny bases written out as the hosts keep them: denoiser, text encoders and autoencoder alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.families.base import Family
from dreambooth_core.families.stable_diffusion import vae
from dreambooth_core.formats.checkpoints.folder_layout import read_config, read_weights
from dreambooth_core.formats.checkpoints.pairs import to_single
from dreambooth_core.formats.storage import Lazy, write_tensors

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Split:
    """The files of one base."""

    denoiser: Path
    vae: Path
    texts: list[Path]
    tokenizer: Path
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """By network, in the hosts' names."""


def write_split(
    family: Family, source: Path, folder: Path, dtype: torch.dtype | None = None
) -> Split:
    """Writes the networks of a diffusers folder as files of the hosts."""
    assert family.files is not None
    tensors = {
        family.denoiser: family.files.to_hosts(read_weights(source / family.denoiser)),
        "vae": ldm(source / "vae"),
        **{name: text(family, name, source / name) for name in family.text_encoders},
    }
    for name in family.companions:
        tensors[name] = family.files.to_hosts(read_weights(source / name))
    if dtype is not None:
        tensors = {
            name: {k: t.to(dtype) for k, t in each.items()} for name, each in tensors.items()
        }
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.safetensors" for name in tensors}
    for name, path in paths.items():
        write_tensors(path, tensors[name])
    texts = [paths[name] for name in family.text_encoders]
    return Split(paths[family.denoiser], paths["vae"], texts, source, tensors)


def ldm(folder: Path) -> dict[str, Tensor]:
    """An autoencoder in LDM's names, or in Wan's."""
    tensors = read_weights(folder)
    if "encoder.down_blocks.0.norm1.gamma" in tensors:
        return {video_name(name): tensor for name, tensor in tensors.items()}
    pairs = vae.pairs_of(vae.plan_from_config(read_config(folder)))
    made = to_single(pairs, tensors, folder)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
    return {**{k: v() if isinstance(v, Lazy) else v for k, v in made.items()}, **own}


VIDEO = {
    "post_quant_conv.": "conv2.",
    "quant_conv.": "conv1.",
    "coder.conv_in.": "coder.conv1.",
    ".norm_out.": ".head.0.",
    ".conv_out.": ".head.2.",
    ".mid_block.attentions.0.": ".middle.1.",
    ".mid_block.resnets.0.": ".middle.0.",
    ".mid_block.resnets.1.": ".middle.2.",
    ".down_blocks.": ".downsamples.",
    ".norm1.": ".residual.0.",
    ".norm2.": ".residual.3.",
    ".conv_shortcut.": ".shortcut.",
}
VIDEO_INSIDE = {".conv1.": ".residual.2.", ".conv2.": ".residual.6."}


def video_name(name: str, blocks: int = 1) -> str:
    """Wan's name of a weight of Qwen-Image's autoencoder."""
    parts = name.split(".")
    if parts[1] == "up_blocks":
        within = blocks + 1 if parts[3] == "upsamplers" else int(parts[4])
        parts[1:5] = ["upsamples", str(int(parts[2]) * (blocks + 2) + within)]
    name = ".".join(parts)
    if name.count(".") > 2:
        for theirs, wans in VIDEO_INSIDE.items():
            name = name.replace(theirs, wans)
    for theirs, wans in VIDEO.items():
        name = name.replace(theirs, wans)
    return name


def text(family: Family, name: str, folder: Path) -> dict[str, Tensor]:
    """A text encoder in the names that hosts' files have: a whole language model's."""
    tensors = read_weights(folder)
    kind = family.classes[name].rpartition(".")[2]
    if kind in ("Qwen3Model", "Qwen3VLModel"):
        return {f"model.{key}": value for key, value in tensors.items()}
    if kind == "Gemma2Model":
        plain = {f"model.{key}": value for key, value in tensors.items()}
        return {**plain, "spiece_model": torch.zeros(8, dtype=torch.uint8)}
    if kind == "Mistral3ForConditionalGeneration":
        return {
            name.replace("language_model.", ""): value
            for name, value in tensors.items()
            if "vision_tower" not in name and "projector" not in name and name != "lm_head.weight"
        }
    if kind == "CLIPTextModel":
        return {
            key if key.startswith("text_model.") else f"text_model.{key}": value
            for key, value in tensors.items()
        }
    return dict(tensors)


def as_fp8(tensors: Mapping[str, Tensor], scaled: str | None = None) -> dict[str, Tensor]:
    """Matrices in 8 bits, as ComfyUI stores them: plain, or with scales of the given name."""
    found: dict[str, Tensor] = {} if scaled is None else {"scaled_fp8": torch.zeros(2).to(FP8)}
    for name, tensor in tensors.items():
        if tensor.dim() != 2 or not name.endswith(".weight"):
            found[name] = tensor.to(torch.bfloat16)
        elif scaled is None:
            found[name] = tensor.to(FP8)
        else:
            scale = tensor.float().abs().max() / 448
            found[name] = (tensor.float() / scale).to(FP8)
            found[f"{name.removesuffix('.weight')}.{scaled}"] = scale.reshape(())
    return found


def write_gguf(path: Path, tensors: Mapping[str, Tensor], quantised: Collection[str] = ()) -> None:
    """A GGUF file: some tensors as Q8_0, the others in fp32."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head, body = b"", b""
    for name, tensor in tensors.items():
        data, kind = tensor.float().contiguous().numpy().tobytes(), 0
        if name in quantised:
            rows = tensor.float().reshape(-1, 32)
            scale = (rows.abs().amax(1, keepdim=True) / 127).half()
            whole = (rows / scale.float().clamp(min=1e-9)).round().to(torch.int8)
            data, kind = torch.cat([scale.view(torch.int8), whole], dim=1).numpy().tobytes(), 8
        shape = struct.pack(f"<{tensor.dim()}Q", *reversed(tensor.shape))
        place = struct.pack("<IQ", kind, len(body))
        head += text(name) + struct.pack("<I", tensor.dim()) + shape + place
        body += data + bytes(-len(data) % 32)
    fact = text("general.architecture") + struct.pack("<I", 8) + text("test")
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1) + fact + head
    path.write_bytes(head + bytes(-len(head) % 32) + body)


def edit_config(file: Path, **values: Any) -> None:
    """Changes values of a configuration."""
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, **values}), encoding="utf-8")


def without(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The others."""
    left = set(names)
    return {name: tensor for name, tensor in tensors.items() if name not in left}
