"""Reads each network of a single file: its configuration and its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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

    def shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        """Of the tensors below a prefix."""
        inside = single_layout.under(self.tensors, prefix)
        return {name: tuple(tensor.shape) for name, tensor in inside.items()}

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
        components[name] = _text(reading, name, prefix, index)
    second = components.get("text_encoder_2")
    if second is not None and "unet" not in reading.own:
        unet_config.set_time_width(components["unet"].config, second.config["projection_dim"])
    return components


def _unet(reading: Reading, *, ema: bool) -> Component:
    prefix = single_layout.UNET
    inside = single_layout.under(reading.tensors, prefix)
    plan = unet.plan_from_shapes(reading.shapes(prefix))
    pairs = unet.pairs_of(plan)
    strange = sorted(set(inside) - {pair.single for pair in pairs})
    if strange:
        raise Unsupported(f"the UNet has a part that is not Stable Diffusion's: {strange[0]}")
    config = _own_config(reading, "unet", lambda own: unet.plan_from_config(own) == plan)
    if config is None:
        said = reading.yaml.heads(plan) if reading.yaml else None
        heads = said or unet_config.default_heads(plan, reading.family)
        config = unet_config.config_from_plan(plan, heads, sample_size=None)
    if reading.yaml is not None:
        reading.yaml.check(plan)
    if ema:
        inside = _ema(reading, pairs)
    reading.used |= {prefix + pair.single for pair in pairs}
    return Component(config, to_diffusers(pairs, inside, reading.path))


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
    plan = vae.plan_from_shapes(reading.shapes(single_layout.VAE))
    config = _own_config(reading, "vae", lambda own: vae.plan_from_config(own) == plan)
    if config is None:
        said = reading.yaml.scale_factor if reading.yaml else None
        config = vae.config_from_plan(
            plan,
            scaling=said or vae.SCALING[reading.family],
            sample_size=1024 if reading.family.startswith("sdxl") else 512,
        )
    return Component(config, reading.take(single_layout.VAE, vae.pairs_of(plan)))


def _text(reading: Reading, name: str, prefix: str, index: int) -> Component:
    openclip = (reading.family, name) in single_layout.OPENCLIP
    plan = (text.openclip_plan if openclip else text.clip_plan)(reading.shapes(prefix))
    if reading.family == "sd2":
        # The text is read before the last layer, and its projection is not used.
        plan = replace(plan, layers=_sd2_layers(reading, plan), projection=None)
    projected = plan.projection is not None
    config = _own_config(
        reading, name, lambda own: text.plan_from_config(own, projected=projected) == plan
    )
    if config is None:
        folders = reading.yaml.text_folders if reading.yaml else ()
        beside = ldm_yaml.text_config(folders[index] if index < len(folders) else None) or {}
        config = text.config_from_plan(
            plan,
            heads=beside.get("num_attention_heads") or text.default_heads(plan.width),
            activation=beside.get("hidden_act", "gelu" if openclip else "quick_gelu"),
        )
    if not openclip:
        reading.used.add(f"{prefix}text_model.embeddings.position_ids")
    pairs = (text.openclip_pairs if openclip else text.clip_pairs)(plan)
    return Component(config, reading.take(prefix, pairs))


def _sd2_layers(reading: Reading, plan: text.TextPlan) -> int:
    """How many layers SD2 uses: all but the last, if the file has the last.

    Some programs write only the 23 that are used; a file of our own says how many.
    """
    said = (reading.own.get("text_encoder") or {}).get("num_hidden_layers")
    if isinstance(said, int) and plan.layers - 1 <= said <= plan.layers:
        return said
    full = plan.projection is not None or plan.layers == 24
    return plan.layers - 1 if full and plan.layers != 23 else plan.layers


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
