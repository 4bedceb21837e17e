"""Reads each network of a single file: its configuration and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.formats.checkpoints import (
    ldm_yaml,
    single_layout,
    text,
    unet,
    unet_config,
    vae,
)
from dreambooth_core.formats.checkpoints.config_rules import check_config
from dreambooth_core.formats.checkpoints.pairs import Pair, to_diffusers
from dreambooth_core.formats.checkpoints.parts import Component


@dataclass
class Reading:
    """What is known while one file is read."""

    path: Path
    family: str
    tensors: dict[str, torch.Tensor]
    own: dict[str, Any]
    """The configurations that our own metadata holds."""
    yaml: ldm_yaml.LdmYaml | None
    warnings: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    """Names that a network has taken; the rest are extras."""

    def take(self, prefix: str, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        """The weights below a prefix in diffusers' names; what stays behind is an extra."""
        inside = single_layout.under(self.tensors, prefix)
        found = to_diffusers(pairs, inside, self.path)
        self.used |= {prefix + pair.single for pair in pairs}
        return found


def components_of(reading: Reading, *, ema: bool) -> dict[str, Component]:
    """Every network that the file holds.

    Raises:
        UserError: a network is damaged, of another kind, or smaller than its family and without
            a configuration that says how.
    """
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


def _unet(reading: Reading, *, ema: bool) -> Component:
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
            sample_size=None,
        )
    if reading.yaml is not None:
        reading.yaml.check(plan)
    if ema:
        inside = _ema(reading, pairs)
    reading.used |= {prefix + pair.single for pair in pairs}
    return Component(config, to_diffusers(pairs, inside, reading.path))


def _unet_heads(reading: Reading, plan: unet.UNetPlan) -> tuple[int, ...]:
    said = reading.yaml.heads(plan) if reading.yaml else None
    return said or unet_config.default_heads(plan, reading.family)


def _ema(reading: Reading, pairs: list[Pair]) -> dict[str, torch.Tensor]:
    names = {pair.single: single_layout.ema_name(pair.single) for pair in pairs}
    if not any(name in reading.tensors for name in names.values()):
        raise UserError("there are no EMA weights in this file", do="Leave --ema out")
    missing = [name for name in names.values() if name not in reading.tensors]
    if missing:
        raise UserError(f"the EMA weights are incomplete: {missing[0]} is missing")
    reading.used |= set(names.values())
    return {single: reading.tensors[name] for single, name in names.items()}


def _vae(reading: Reading) -> Component:
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


def _clip(reading: Reading, name: str, prefix: str, index: int) -> Component:
    inside = single_layout.under(reading.tensors, prefix)
    plan = text.clip_plan({key: tuple(t.shape) for key, t in inside.items()})
    config = _text_config(reading, name, index, plan, plan.layers, "quick_gelu")
    reading.used.add(f"{prefix}text_model.embeddings.position_ids")
    return Component(config, reading.take(prefix, text.clip_pairs(plan)))


def _openclip(reading: Reading, name: str, prefix: str, index: int) -> Component:
    inside = single_layout.under(reading.tensors, prefix)
    plan = text.openclip_plan({key: tuple(t.shape) for key, t in inside.items()})
    if reading.family == "sd2":
        # The text is read before the last layer, and its projection is not used.
        used = _sd2_layers(reading, plan)
        plan = text.TextPlan(used, plan.width, plan.inner, plan.vocabulary, plan.positions, None)
    config = _text_config(reading, name, index, plan, plan.layers, "gelu")
    return Component(config, reading.take(prefix, text.openclip_pairs(plan)))


def _sd2_layers(reading: Reading, plan: text.TextPlan) -> int:
    """How many layers SD2 uses: all but the last, if the file has the last.

    Some programs write only the 23 that are used; a file of our own says how many.
    """
    said = (reading.own.get("text_encoder") or {}).get("num_hidden_layers")
    if isinstance(said, int) and plan.layers - 1 <= said <= plan.layers:
        return said
    full = plan.projection is not None or plan.layers == 24
    return plan.layers - 1 if full and plan.layers != 23 else plan.layers


def _text_config(
    reading: Reading, name: str, index: int, plan: text.TextPlan, layers: int, activation: str
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


def _own_config(
    reading: Reading, name: str, fits: Callable[[Mapping[str, Any]], bool]
) -> dict[str, Any] | None:
    """The configuration that our own metadata holds, if it is of these very tensors."""
    config = reading.own.get(name)
    if config is None:
        return None
    check_config(name, config, f"{reading.path} (metadata)")
    if fits(config):
        return config
    reading.warnings.append(f"the metadata's {name} configuration does not fit; shapes were used")
    return None
