"""Reads a single-file checkpoint into its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats import pickles, storage
from dreambooth_core.formats.checkpoints import (
    ldm_yaml,
    prediction,
    scheduler,
    single_layout,
    text,
    unet,
    unet_config,
    vae,
)
from dreambooth_core.formats.checkpoints.pairs import Pair, to_diffusers
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts, check_complete

OWN_KEY = "dreambooth.model"
"""Metadata key under which our own files keep the configurations that shapes cannot tell."""


@dataclass
class _Reading:
    """What is known while one file is read."""

    path: Path
    family: str
    tensors: dict[str, torch.Tensor]
    own: dict[str, Any]
    yaml: ldm_yaml.LdmYaml | None
    warnings: list[str]
    used: set[str]

    def take(self, prefix: str, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        """The weights below a prefix in diffusers' names; what stays behind is an extra."""
        inside = single_layout.under(self.tensors, prefix)
        found = to_diffusers(pairs, inside, self.path)
        self.used |= {prefix + pair.single for pair in pairs}
        return found


def read_single_file(
    path: str | Path,
    *,
    config_file: str | Path | None = None,
    prediction_type: str | None = None,
    ema: bool = False,
    need_vae: bool = True,
) -> ModelParts:
    """Reads a ``.safetensors`` or ``.ckpt`` checkpoint of SD1, SD2 or SDXL.

    Tensors are views on the file's memory map. Sizes come from shapes; what shapes cannot say
    (heads, prediction type, noise schedule) from this program's own metadata, the yaml given or
    beside the file, or the family.

    Args:
        path: the checkpoint.
        config_file: a latent diffusion yaml; default: the one beside the file, if any.
        prediction_type: overrides what the file says.
        ema: take the moving average of the UNet's weights (``model_ema.*``).
        need_vae: whether a file without a VAE is an error.

    Raises:
        UserError: not a checkpoint of these families, incomplete, damaged, or an SD2 model that
            does not say what it predicts.
    """
    path = Path(path)
    raw, metadata, steps = load_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in raw.items()}
    family = single_layout.family_of(shapes)
    if family is None:
        from dreambooth_core.formats.detect import describe

        raise Unsupported(
            f"{describe(path)}, not a Stable Diffusion 1, 2 or XL checkpoint", where=path
        )
    yaml = ldm_yaml.find_yaml(path, config_file)
    own = {} if config_file else _own(metadata)
    reading = _Reading(path, family, single_layout.normalised(raw, family), own, yaml, [], set())
    try:
        components = _components(reading, ema=ema)
    except UserError as error:
        if error.where is None:
            error = type(error)(error.what, where=path, do=error.do)
        raise error from None
    answer = prediction.find(
        family,
        reading.tensors,
        asked=prediction_type,
        yaml=yaml.prediction_type if yaml else None,
        metadata=_with_own_prediction(metadata, own),
        global_step=steps,
    )
    parts = ModelParts(
        family=family,
        components=components,
        scheduler=_scheduler(reading, answer),
        extras=_extras(reading),
        metadata={k: v for k, v in metadata.items() if k != OWN_KEY},
        warnings=reading.warnings,
    )
    if need_vae or "vae" in components:
        check_complete(parts, path)
    return parts


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], int | None]:
    """All tensors of a file, its metadata, and the training steps that a pickle may name."""
    if pickles.is_pickle(path):
        loaded = pickles.read_pickle(path)
        return loaded.tensors, loaded.metadata, loaded.global_step
    return storage.read_tensors(path), storage.read_metadata(path), None


def _components(reading: _Reading, *, ema: bool) -> dict[str, Component]:
    components = {"unet": _unet(reading, ema=ema)}
    if any(name.startswith(single_layout.VAE) for name in reading.tensors):
        components["vae"] = _vae(reading)
    for index, (name, prefix) in enumerate(single_layout.PREFIXES[reading.family].items()):
        if not any(key.startswith(prefix) for key in reading.tensors):
            continue
        openclip = (reading.family, name) in single_layout.OPENCLIP
        components[name] = (_openclip if openclip else _clip)(reading, name, prefix, index)
    second = components.get("text_encoder_2")
    if second is not None and "unet" not in reading.own:
        unet_config.set_time_width(components["unet"].config, second.config["projection_dim"])
    return components


def _unet(reading: _Reading, *, ema: bool) -> Component:
    prefix = single_layout.UNET
    inside = single_layout.under(reading.tensors, prefix)
    plan = unet.plan_from_shapes({name: tuple(t.shape) for name, t in inside.items()})
    pairs = unet.pairs_of(plan)
    strange = sorted(set(inside) - {pair.single for pair in pairs})
    if strange:
        raise Unsupported(f"the UNet has a part that is not Stable Diffusion's: {strange[0]}")
    config = _own_config(reading, "unet", lambda own: unet.plan_from_config(own) == plan)
    if config is None:
        config = unet_config.config_from_plan(
            plan,
            _unet_heads(reading, plan),
            sample_size={"sdxl": 128, "sdxl_refiner": 128}.get(reading.family, 64),
        )
    if reading.yaml is not None:
        reading.yaml.check(plan)
    if ema:
        inside = _ema(reading, pairs)
    reading.used |= {prefix + pair.single for pair in pairs}
    return Component(config, to_diffusers(pairs, inside, reading.path))


def _unet_heads(reading: _Reading, plan: unet.UNetPlan) -> tuple[int, ...]:
    said = reading.yaml.heads(plan) if reading.yaml else None
    return said or unet_config.default_heads(plan, reading.family)


def _ema(reading: _Reading, pairs: list[Pair]) -> dict[str, torch.Tensor]:
    names = {pair.single: single_layout.ema_name(pair.single) for pair in pairs}
    if not any(name in reading.tensors for name in names.values()):
        raise UserError("there are no EMA weights in this file", do="Leave --ema out")
    missing = [name for name in names.values() if name not in reading.tensors]
    if missing:
        raise UserError(f"the EMA weights are incomplete: {missing[0]} is missing")
    reading.used |= set(names.values())
    return {single: reading.tensors[name] for single, name in names.items()}


def _vae(reading: _Reading) -> Component:
    inside = single_layout.under(reading.tensors, single_layout.VAE)
    plan = vae.plan_from_shapes({name: tuple(t.shape) for name, t in inside.items()})
    config = _own_config(reading, "vae", lambda own: vae.plan_from_config(own) == plan)
    if config is None:
        said = reading.yaml.scale_factor if reading.yaml else None
        config = vae.config_from_plan(
            plan,
            scaling=said or vae.SCALING[reading.family],
            sample_size=1024 if reading.family.startswith("sdxl") else 512,
        )
    return Component(config, reading.take(single_layout.VAE, vae.pairs_of(plan)))


def _clip(reading: _Reading, name: str, prefix: str, index: int) -> Component:
    inside = single_layout.under(reading.tensors, prefix)
    plan = text.clip_plan({key: tuple(t.shape) for key, t in inside.items()})
    config = _text_config(reading, name, index, plan, plan.layers, "quick_gelu")
    reading.used.add(f"{prefix}text_model.embeddings.position_ids")
    return Component(config, reading.take(prefix, text.clip_pairs(plan)))


def _openclip(reading: _Reading, name: str, prefix: str, index: int) -> Component:
    inside = single_layout.under(reading.tensors, prefix)
    plan = text.openclip_plan({key: tuple(t.shape) for key, t in inside.items()})
    if reading.family == "sd2":
        # The text is read before the last layer, and its projection is not used.
        used = _sd2_layers(reading, plan)
        plan = text.TextPlan(used, plan.width, plan.inner, plan.vocabulary, plan.positions, None)
    config = _text_config(reading, name, index, plan, plan.layers, "gelu")
    return Component(config, reading.take(prefix, text.openclip_pairs(plan)))


def _sd2_layers(reading: _Reading, plan: text.TextPlan) -> int:
    """How many layers SD2 uses: all but the last, if the file has the last.

    Some programs write only the 23 that are used; a file of our own says how many.
    """
    said = (reading.own.get("text_encoder") or {}).get("num_hidden_layers")
    if isinstance(said, int) and plan.layers - 1 <= said <= plan.layers:
        return said
    full = plan.projection is not None or plan.layers == 24
    return plan.layers - 1 if full and plan.layers != 23 else plan.layers


def _text_config(
    reading: _Reading, name: str, index: int, plan: text.TextPlan, layers: int, activation: str
) -> dict[str, Any]:
    projected = plan.projection is not None

    def fits(config: Mapping[str, Any]) -> bool:
        return text.plan_from_config(config, projected=projected) == plan

    own = _own_config(reading, name, fits)
    if own is not None:
        return own
    folders = reading.yaml.text_folders if reading.yaml else ()
    beside = ldm_yaml.text_config(folders[index] if index < len(folders) else None) or {}
    heads = beside.get("num_attention_heads") or text.default_heads(plan.width)
    return text.config_from_plan(
        plan, heads=heads, activation=beside.get("hidden_act", activation), layers=layers
    )


def _own(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        own = json.loads(metadata.get(OWN_KEY, "{}"))
    except ValueError:
        return {}
    return own if isinstance(own, dict) else {}


def _own_config(reading: _Reading, name: str, fits: Any) -> dict[str, Any] | None:
    """The configuration that our own metadata holds, if it is of these very tensors."""
    config = reading.own.get(name)
    if config is None:
        return None
    try:
        if isinstance(config, dict) and fits(config):
            return config
    except (UserError, KeyError, TypeError, ValueError):
        pass
    reading.warnings.append(f"the metadata's {name} configuration does not fit; shapes were used")
    return None


def _with_own_prediction(metadata: Mapping[str, str], own: Mapping[str, Any]) -> dict[str, str]:
    said = (own.get("scheduler") or {}).get("prediction_type")
    return {**metadata, **({"modelspec.prediction_type": str(said)} if said else {})}


def _scheduler(reading: _Reading, answer: str) -> dict[str, Any]:
    own = reading.own.get("scheduler")
    if isinstance(own, dict) and own.get("prediction_type", "epsilon") == answer:
        return own
    zero = "ztsnr" in reading.tensors
    config = scheduler.default_scheduler(reading.family, answer, zero_terminal_snr=zero)
    if reading.yaml is not None:
        config |= reading.yaml.betas
    return config


def _extras(reading: _Reading) -> dict[str, torch.Tensor]:
    skip = reading.used | set(single_layout.MARKERS)
    return {name: tensor for name, tensor in reading.tensors.items() if name not in skip}
