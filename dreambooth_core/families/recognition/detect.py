"""Says what a model file or folder is, from its first bytes, its tensors' names and shapes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.disk import settle
from dreambooth_core.disk.reading import open_regular, read_json, regular
from dreambooth_core.errors import UserError
from dreambooth_core.families.names import LABELS, label_of, names_of
from dreambooth_core.families.names.stable_diffusion import has_second_encoder, of_keys, of_width
from dreambooth_core.families.recognition.signatures import (
    ADAPTER_ENDINGS,
    ADAPTER_FRAGMENTS,
    FOREIGN,
    MAGIC,
    SIGNATURES,
)
from dreambooth_core.families.recognition.transformers import look
from dreambooth_core.families.stable_diffusion import prediction, single_layout
from dreambooth_core.families.stable_diffusion.unet import Shapes
from dreambooth_core.formats import pickles, storage
from dreambooth_core.formats.adapters.naming import called, family_of_keys
from dreambooth_core.formats.folders import INDEXES, entries, is_file, is_folder

NOT_A_MODEL = "not a model"

_VARIANTS = {9: "inpainting", 8: "edit (image and instruction)", 5: "depth"}
_PARTS = {"UNet2DConditionModel": "unet", "AutoencoderKL": "vae", "ControlNetModel": "controlnet"}


@dataclass(frozen=True)
class Identity:
    """What a file or folder is."""

    path: Path
    kind: str
    """``checkpoint``, ``diffusers`` (a folder), ``adapter``, ``vae``, ``unet``, ``text encoder``,
    ``controlnet``, ``embedding``, …, ``not a model``."""
    family: str | None
    """``sd1``, ``sd2``, ``sdxl``, ``sdxl_refiner``, ``flux``, …; ``None`` where nothing tells."""
    label: str
    """The same in words: "a LoRA for Stable Diffusion XL"."""
    container: str
    """``safetensors``, ``pickle``, ``folder`` or ``other``."""
    advice: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        found = {**vars(self), **self.details, "path": str(self.path)}
        return {key: value for key, value in found.items() if key not in ("advice", "details")}


def identify(path: str | Path) -> Identity:
    """Says what a file or folder is.

    Raises:
        UserError: no such file, empty, cut short, a pickle that is refused, or a file of an
            unknown kind; the message says what was found.
    """
    path = Path(path)
    settle(path)
    if is_folder(path):
        return _folder(path)
    if regular(path) == 0:
        raise UserError("this file is empty", where=path, do="Download or copy it again")
    strange = foreign(path)
    if strange is not None:
        return strange
    if pickles.is_pickle(path):
        loaded = pickles.load(path)
        if isinstance(loaded, Mapping) and "string_to_param" in loaded:
            label = "a textual inversion embedding"
            return Identity(path, "embedding", None, label, "pickle")
        if isinstance(loaded, Mapping) and {320, 640, 768, 1024, 1280}.intersection(loaded):
            return Identity(path, "hypernetwork", None, "a hypernetwork", "pickle")
        found = pickles.sorted_out(loaded, path)
        shapes = {name: tuple(t.shape) for name, t in found.tensors.items()}
        dtypes = Counter(str(t.dtype).removeprefix("torch.") for t in found.tensors.values())
        return _by_names(path, shapes, dtypes, found.metadata, "pickle")
    header = storage.read_header(path)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    dtypes = Counter(entry.dtype for entry in header.tensors.values())
    return _by_names(path, shapes, dtypes, header.metadata, "safetensors")


def describe(path: str | Path) -> str:
    """One phrase for an error message; never raises for a strange file."""
    try:
        return f"this is {identify(path).label}"
    except UserError as error:
        return error.what


def _by_names(
    path: Path, shapes: Shapes, dtypes: Mapping[str, int], metadata: Mapping[str, str], holder: str
) -> Identity:
    details: dict[str, Any] = {
        "tensors": len(shapes),
        "parameters": sum(math.prod(shape) for shape in shapes.values()),
        "dtypes": dict(dtypes),
    }
    special = None if _is_adapter(shapes) else look(shapes, dtypes)
    if special is not None and not any(each.fits(shapes) for each in FOREIGN):
        details |= special.details
        return Identity(
            path, special.kind, special.family, special.label, holder, special.advice, details
        )
    kind, family, label = _classify(shapes, metadata)
    if kind is None:
        example = min(shapes, default="nothing")
        raise UserError(
            f"a file of an unknown kind: {len(shapes)} tensors, for example {example}", where=path
        )
    if kind == "checkpoint" and family in LABELS:
        details |= _checkpoint_details(shapes, metadata)
        if details["variant"] != "base":
            label += f", {details['variant']}"
    return Identity(path, kind, family, label, holder, details=details)


def _is_adapter(shapes: Shapes) -> bool:
    return any(
        name.endswith(ADAPTER_ENDINGS) or any(part in name for part in ADAPTER_FRAGMENTS)
        for name in shapes
    )


def _classify(shapes: Shapes, metadata: Mapping[str, str]) -> tuple[str | None, str | None, str]:
    names = list(shapes)
    if _is_adapter(shapes):
        family = _adapter_family(shapes, metadata)
        transformer = names_of(family)
        whose = called(transformer, shapes) if transformer else label_of(family)
        return "adapter", family, f"a LoRA or relative{f' for {whose}' * bool(whose)}"
    for signature in SIGNATURES:
        if signature.fits(names):
            family = signature.family or _family_of_part(shapes)
            return signature.kind, family, signature.label
    family = single_layout.family_of(shapes)
    if family is not None:
        return "checkpoint", family, f"a {LABELS[family]} checkpoint"
    if any(name.startswith(single_layout.UNET) for name in names):
        return "checkpoint", None, "a checkpoint of an unknown diffusion model"
    if _is_embedding(shapes):
        widths = {int(shape[-1]) for shape in shapes.values()}
        family = "sdxl" if widths == {768, 1280} else of_width(min(widths))
        return "embedding", family, "a textual inversion embedding"
    return None, None, ""


def _checkpoint_details(shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Any]:
    first = shapes[f"{single_layout.UNET}input_blocks.0.0.weight"]
    channels = int(first[1]) if len(first) > 1 else 0
    said = "v_prediction" if "v_pred" in shapes else prediction.from_metadata(metadata)
    return {
        "variant": _VARIANTS.get(channels, "base" if channels == 4 else f"{channels} channels"),
        "prediction_type": said,
        "zero_terminal_snr": "ztsnr" in shapes,
        "ema": any(name.startswith(single_layout.EMA) for name in shapes),
        "vae": any(name.startswith(single_layout.VAE) for name in shapes),
    }


def _adapter_family(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    family, of_unet = of_keys(shapes)
    if of_unet:
        return family
    transformer = family_of_keys(shapes, metadata)
    if transformer is not None:
        return transformer[0].family
    return "sdxl" if has_second_encoder(shapes) else None


def _family_of_part(shapes: Shapes) -> str | None:
    for name, shape in shapes.items():
        if name.endswith("attn2.to_k.weight") and len(shape) == 2:
            return of_width(int(shape[1]))
    return None


def _is_embedding(shapes: Shapes) -> bool:
    """A handful of rows as wide as a text encoder, and nothing else."""
    widths = (768, 1024, 1280)
    return 0 < len(shapes) <= 4 and all(
        len(s) in (1, 2) and s[-1] in widths and (len(s) == 1 or s[0] <= 256)
        for s in shapes.values()
    )


def foreign(path: Path) -> Identity | None:
    """Files that hold no tensors this program could read, by their first bytes or their name."""
    with open_regular(path) as file:
        head = file.read(2048)
        file.seek(max(0, file.seek(0, 2) - 65536))
        tail = file.read()
    lower = head.lstrip().lower()

    def found(label: str, advice: str) -> Identity:
        return Identity(path, NOT_A_MODEL, None, label, "other", advice=advice)

    if path.suffix == ".pdparams" or b"StructuredToParameterName@@" in tail:
        return found("a Paddle checkpoint (.pdparams)", "Get the model in PyTorch's format")
    if path.suffix == ".onnx":
        return found("an ONNX model", "Get the model as .safetensors")
    if lower.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return found(
            "a web page, not a model", "Download the file itself, perhaps after logging in"
        )
    if pickles.is_pickle(path):
        return None
    if path.suffix in (".ckpt", ".pt", ".bin", ".pth") and head.startswith(b"PK\x03\x04"):
        return None  # a cut archive: the reader says so
    for magic, label, advice in MAGIC:
        if head.startswith(magic):
            return found(label, advice)
    if lower.startswith((b"{", b"[")) and not _safetensors(head):
        return found("a JSON text, perhaps a server's error message", "Download the file again")
    if not _safetensors(head) and _is_text(head):
        return found("a text file", "Give a model file")
    return None


def _safetensors(head: bytes) -> bool:
    return len(head) > 8 and head[8:9] == b"{"


def _is_text(head: bytes) -> bool:
    try:
        text = head[:-4].decode("utf-8") if len(head) >= 2048 else head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(char.isprintable() or char in "\r\n\t" for char in text)


def _folder(path: Path) -> Identity:
    def told(kind: str, family: str | None, label: str, **details: str) -> Identity:
        return Identity(path, kind, family, label, "folder", details=details)

    files = (*INDEXES, "adapter_config.json", "config.json")
    file = next((name for name in files if is_file(path / name)), None)
    if file is None:
        from dreambooth_core.formats.adapters.read import is_adapter_folder

        if is_adapter_folder(path):
            return told("adapter", None, "a folder of adapters, one per network")
        what = ", ".join(entry.name for entry in entries(path)[:3]) or "nothing"
        raise UserError(f"this folder holds no model (found: {what})", where=path)
    config = read_json(path / file)
    if file in INDEXES:
        from dreambooth_core.families.stable_diffusion import folder

        pipeline = str(config.get("_class_name", ""))
        family = folder.family_of(path, config)
        name = LABELS.get(family or "", pipeline or "an unknown pipeline")
        return told("diffusers", family, f"a diffusers folder of {name}", pipeline=pipeline)
    if file == "adapter_config.json":
        method = str(config.get("peft_type", "adapter"))
        return told("adapter", None, f"a peft adapter ({method})", peft=method)
    listed = config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else "unknown"
    name = str(config.get("_class_name") or first)[:80]
    kind = _PARTS.get(name, "text encoder" if name.startswith("CLIPTextModel") else "part")
    return told(kind, None, f"a folder with a {name}")
