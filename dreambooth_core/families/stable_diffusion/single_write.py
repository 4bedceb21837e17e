"""Writes a model as one file that A1111, ComfyUI and diffusers load."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.disk import exchanging, write_bytes
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.clip_tokenizers import padding_of, tokenizer_files
from dreambooth_core.families.stable_diffusion import (
    ldm_yaml_write,
    prediction,
    single_layout,
    text,
    unet,
    vae,
)
from dreambooth_core.families.stable_diffusion.parts import (
    OPENCLIP,
    TEXT_ENCODERS,
    check_complete,
    is_inpainting,
    resolution_of,
)
from dreambooth_core.families.stable_diffusion.single_layout import kept
from dreambooth_core.families.stable_diffusion.single_read import OWN_KEY
from dreambooth_core.families.stable_diffusion.stock import is_stock_text
from dreambooth_core.formats.archives import write_archive
from dreambooth_core.formats.checkpoints.pairs import Pair, to_single
from dreambooth_core.formats.checkpoints.parts import FLOW, ModelParts, cast
from dreambooth_core.formats.storage import Lazy, TensorLike, write_tensors

log = logging.getLogger(__name__)

_ARCHITECTURES = {
    ("sd1", "epsilon"): "stable-diffusion-v1",
    ("sd1", "v_prediction"): "stable-diffusion-v1",
    ("sd2", "epsilon"): "stable-diffusion-v2-512",
    ("sd2", "v_prediction"): "stable-diffusion-v2-768-v",
    ("sdxl", "epsilon"): "stable-diffusion-xl-v1-base",
    ("sdxl", "v_prediction"): "stable-diffusion-xl-v1-base",
    ("sdxl_refiner", "epsilon"): "stable-diffusion-xl-v1-refiner",
}
_SPELLED = {"v_prediction": "v", FLOW: "flow"}
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash", "format")
# Values of a configuration that the single-file loaders take for granted.
_GRANTED: dict[str, dict[str, Any]] = {
    "unet": {"norm_num_groups": 32, "act_fn": "silu", "flip_sin_to_cos": True, "freq_shift": 0},
    "vae": {"norm_num_groups": 32, "act_fn": "silu"},
}


@dataclass
class Written:
    """What a write made and what a person should know of it."""

    path: Path
    files: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def write_single_file(
    parts: ModelParts,
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extras: str = "text",
    yaml: str = "auto",
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Writes ``.safetensors``, or ``.ckpt`` by the name's ending.

    Beside a reduced model, a v-prediction model or an SD2 model a ``.yaml`` is written for A1111;
    a reduced text encoder also gets a folder with its ``config.json`` and tokenizer. These take
    the place of older ones together with the file.

    Args:
        dtype: what floating-point weights are cast to; default: as they are.
        extras: of what the source file held and no network uses: ``text`` keeps the text
            encoder's unused weights, ``all`` keeps everything (moving averages, schedules),
            ``none`` drops it.
        yaml: ``auto``, ``always`` or ``never``.
        metadata: texts to add, such as trigger words or a title.

    Raises:
        UserError: a network is missing or has no single-file layout.
        SaveFailed: the file could not be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".ckpt"):
        raise UserError("a single file ends in .safetensors or .ckpt", where=path, do="Name it so")
    check_complete(parts, path)
    written = Written(path, [path], _loader_warnings(parts))
    tensors = tensors_of(parts, path, dtype=dtype, extras=extras)
    texts = metadata_of(parts, path.stem, metadata or {})
    beside = _beside(parts, path, yaml, written)
    if not beside:
        _write_weights(path, tensors, texts)
    else:
        with exchanging(path.parent, [path.name, *{name.split("/")[0] for name in beside}]) as part:
            _write_weights(part / path.name, tensors, texts)
            for name, data in beside.items():
                write_bytes(part / name, data)
        written.files += sorted({path.with_name(name.split("/")[0]) for name in beside})
    for warning in written.warnings:
        log.warning("%s: %s", path.name, warning)
    return written


def tensors_of(
    parts: ModelParts,
    where: str | Path,
    *,
    dtype: torch.dtype | None = None,
    extras: str = "text",
) -> dict[str, TensorLike]:
    """Every tensor of the single file, by name; fused and cast ones are made when written."""
    used: dict[str, TensorLike] = {}
    rest: dict[str, TensorLike] = {}
    for name, prefix in single_layout.prefixes(parts.family).items():
        component = parts.components[name]
        single = to_single(pairs_for(parts, name), component.tensors, where)
        used |= {prefix + key: value for key, value in single.items()}
        if name.startswith("text_encoder"):
            rest |= _text_rest(parts, name, prefix)
    # What was kept goes before the neutral values, and never before what a network uses.
    every = {**rest, **kept(parts, extras), **used}
    found = {key: cast(value, dtype) for key, value in every.items()}
    return found | prediction.markers(
        parts.prediction_type, zero_terminal_snr=parts.zero_terminal_snr
    )


def pairs_for(parts: ModelParts, name: str) -> list[Pair]:
    """The pairs of names of one network."""
    config = parts.components[name].config
    if name == "unet":
        return unet.pairs_of(unet.plan_from_config(config))
    if name == "vae":
        return vae.pairs_of(vae.plan_from_config(config))
    plan = _text_plan(parts, name)
    openclip = (parts.family, name) in OPENCLIP
    return text.openclip_pairs(plan) if openclip else text.clip_pairs(plan)


def metadata_of(parts: ModelParts, title: str, more: Mapping[str, str]) -> dict[str, str]:
    """The texts that go into the file: the source's, the model spec's and our configurations.

    The model spec is https://github.com/Stability-AI/ModelSpec, version 1.0.0.
    """
    kept = {k: v for k, v in parts.metadata.items() if k not in _STALE}
    kind = "epsilon" if parts.prediction_type == FLOW else parts.prediction_type
    architecture = _ARCHITECTURES.get((parts.family, kind), parts.family)
    if is_inpainting(parts):
        architecture += "/inpainting"
    edge = resolution_of(parts)
    spec = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": kept.get("modelspec.title", title),
        "modelspec.resolution": kept.get("modelspec.resolution", f"{edge}x{edge}"),
        "modelspec.prediction_type": _SPELLED.get(parts.prediction_type, "epsilon"),
    }
    own = {name: component.config for name, component in parts.components.items()}
    packed = json.dumps({**own, "scheduler": parts.scheduler}, separators=(",", ":"))
    return {**kept, **spec, **more, OWN_KEY: packed}


def _text_plan(parts: ModelParts, name: str) -> text.TextPlan:
    projected = name == "text_encoder_2"
    return text.plan_from_config(parts.components[name].config, projected=projected)


def _text_rest(parts: ModelParts, name: str, prefix: str) -> dict[str, TensorLike]:
    """What loaders expect beside the weights that diffusers keeps."""
    plan = _text_plan(parts, name)
    token = parts.components[name].tensors["text_model.embeddings.token_embedding.weight"]
    if (parts.family, name) not in OPENCLIP:
        ids = torch.arange(plan.positions, dtype=torch.int64, device=token.device)
        return {f"{prefix}text_model.embeddings.position_ids": ids.unsqueeze(0)}
    rest = text.remainder(plan, token.dtype, last_layer=parts.family == "sd2", device=token.device)
    return {prefix + key: value for key, value in rest.items()}


def _write_weights(path: Path, tensors: Mapping[str, TensorLike], texts: dict[str, str]) -> None:
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, {"format": "pt", **texts})
        return
    made = {
        name: (value() if isinstance(value, Lazy) else value).detach().contiguous()
        for name, value in tensors.items()
    }
    write_archive(path, {"state_dict": made, "metadata": texts})


def _beside(parts: ModelParts, path: Path, yaml: str, written: Written) -> dict[str, bytes]:
    """What belongs beside the file, by its name from there: the yaml and what it names."""
    described = path.with_suffix(".yaml")
    if yaml != "always" and not (yaml == "auto" and ldm_yaml_write.needs_yaml(parts)):
        if described.exists():
            written.warnings.append(
                f"A1111 also reads {described.name}, which was there before; delete it if it "
                "describes another model"
            )
        return {}
    try:
        folders = _text_folders(parts, path)
        content = ldm_yaml_write.yaml_text(
            parts, {name: folder.resolve().as_posix() for name, folder in folders.items()}
        )
    except Unsupported as error:
        written.warnings.append(f"no yaml for A1111: {error.what} cannot be said in it")
        return {}
    found = {described.name: content.encode()}
    for name, folder in folders.items():
        config = parts.components[name].config
        positions = int(config.get("max_position_embeddings", 77))
        files = tokenizer_files(padding_of(parts.family, name), max_length=positions)
        files["config.json"] = json.dumps(config, indent=2).encode()
        found |= {f"{folder.name}/{file}": data for file, data in files.items()}
    return found


def _text_folders(parts: ModelParts, path: Path) -> dict[str, Path]:
    """The folder of each reduced CLIP text encoder, which hosts size by its ``config.json``."""
    return {
        name: path.with_name(f"{path.stem}-clip")
        for name in TEXT_ENCODERS[parts.family]
        if (parts.family, name) not in OPENCLIP and not is_stock_text(parts, name)
    }


def _loader_warnings(parts: ModelParts) -> list[str]:
    found = []
    if parts.prediction_type == FLOW:
        found.append(
            f"this is a model of rectified flow: Forge Neo knows it by {prediction.FLOW_NAME!r} in "
            "the name of its file or folder, ComfyUI needs the node ModelSamplingSD3 behind its "
            "loader, A1111 and Forge cannot run it"
        )
    for name, granted in _GRANTED.items():
        config = parts.components[name].config
        for key, value in granted.items():
            if config.get(key, value) != value:
                found.append(f"the {name} has {key} = {config[key]}; other programs assume {value}")
    return found
