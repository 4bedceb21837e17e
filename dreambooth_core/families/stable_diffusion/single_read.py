"""Reads a single-file checkpoint into its parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dreambooth_core.disk import reading
from dreambooth_core.errors import Unsupported, UserError
from dreambooth_core.families.recognition import detect
from dreambooth_core.families.stable_diffusion import (
    ldm_yaml,
    prediction,
    scheduler,
    single_layout,
    text,
    unet,
    unet_config,
    vae,
)
from dreambooth_core.families.stable_diffusion.config_rules import check_config, check_scheduler
from dreambooth_core.families.stable_diffusion.parts import OPENCLIP, TEXT_ENCODERS, check_complete
from dreambooth_core.formats import folders, pickles, storage
from dreambooth_core.formats.checkpoints.pairs import Pair, to_diffusers
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.eight_bits import in_full

OWN_KEY = "dreambooth.model"
"""Metadata key under which our own files keep the configurations that shapes cannot tell."""


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
        raise Unsupported(
            f"{detect.describe(path)}, not a Stable Diffusion 1, 2 or XL checkpoint", where=path
        )
    yaml = ldm_yaml.find_yaml(path, config_file)
    if yaml and yaml.family not in (None, family):
        raise UserError(
            f"{yaml.path} is for {yaml.family}, and this is {family}",
            where=path,
            do="Leave --original_config_file out.",
        )
    own = {} if config_file else _own(metadata, path)
    found = _Reading(path, family, single_layout.normalised(raw, family), own, yaml)
    try:
        components = found.components(ema=ema)
    except UserError as error:
        raise (error if error.where else type(error)(error.what, where=path, do=error.do)) from None
    said = (own.get("scheduler") or {}).get("prediction_type")
    answer = prediction.find(
        family,
        found.tensors,
        asked=prediction_type,
        yaml=yaml.prediction_type if yaml else None,
        metadata=metadata | ({"modelspec.prediction_type": str(said)} if said else {}),
        global_step=steps,
        name=path.name,
    )
    used = found.used | set(single_layout.MARKERS)
    parts = ModelParts(
        family=family,
        components=components,
        scheduler=found.scheduler(answer),
        extras={name: tensor for name, tensor in found.tensors.items() if name not in used},
        metadata={k: v for k, v in metadata.items() if k != OWN_KEY},
        warnings=found.warnings,
    )
    if need_vae or "vae" in components:
        check_complete(parts, path)
    if components["unet"].config.get("sample_size") is None:
        components["unet"].config |= _size(parts)
    return parts


@dataclass
class _Reading:
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

    def components(self, *, ema: bool) -> dict[str, Component]:
        """Every network that the file holds.

        Raises:
            UserError: a network is damaged, of another kind, or smaller than its family and
                without a configuration that says how.
        """
        found = {"unet": self._unet(ema=ema)}
        if any(name.startswith(single_layout.VAE) for name in self.tensors):
            found["vae"] = self._vae()
        for index, (name, prefix) in enumerate(TEXT_ENCODERS[self.family].items()):
            if any(key.startswith(prefix) for key in self.tensors):
                found[name] = self._text(name, prefix, index)
        second = found.get("text_encoder_2")
        if second is not None and "unet" not in self.own:
            unet_config.set_time_width(found["unet"].config, second.config["projection_dim"])
        return found

    def scheduler(self, answer: str) -> dict[str, Any]:
        """The noise schedule and sampler of a UNet with this prediction type."""
        own: dict[str, Any] | None = self.own.get("scheduler")
        if own is not None:
            check_scheduler(own, self.path)
            if own.get("prediction_type", "epsilon") == answer:
                return own
        zero = "ztsnr" in self.tensors
        config = scheduler.default_scheduler(self.family, answer, zero_terminal_snr=zero)
        return config | (self.yaml.betas if self.yaml else {})

    def _shapes(self, prefix: str) -> dict[str, tuple[int, ...]]:
        inside = single_layout.under(self.tensors, prefix)
        return {name: tuple(tensor.shape) for name, tensor in inside.items()}

    def _take(
        self, prefix: str, pairs: list[Pair], inside: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """The weights below a prefix, or others for them, in diffusers' names; what stays behind
        is an extra."""
        inside = single_layout.under(self.tensors, prefix) if inside is None else inside
        self.used |= {prefix + pair.single for pair in pairs}
        return to_diffusers(pairs, inside, self.path)

    def _unet(self, *, ema: bool) -> Component:
        shapes = self._shapes(single_layout.UNET)
        plan = unet.plan_from_shapes(shapes)
        pairs = unet.pairs_of(plan)
        strange = sorted(set(shapes) - {pair.single for pair in pairs})
        if strange:
            raise Unsupported(f"the UNet has a part that is not Stable Diffusion's: {strange[0]}")
        config = self._own("unet", lambda own: unet.plan_from_config(own) == plan)
        if config is None:
            said = self.yaml.heads(plan) if self.yaml else None
            heads = said or unet_config.default_heads(plan, self.family)
            config = unet_config.config_from_plan(plan, heads, sample_size=None)
        if self.yaml is not None:
            self.yaml.check(plan)
        inside = self._averages(pairs) if ema else None
        return Component(config, self._take(single_layout.UNET, pairs, inside))

    def _averages(self, pairs: list[Pair]) -> dict[str, torch.Tensor]:
        """The moving averages of the UNet's weights, by the names of these."""
        names = {pair.single: single_layout.ema_name(pair.single) for pair in pairs}
        missing = [name for name in names.values() if name not in self.tensors]
        if len(missing) == len(names):
            raise UserError("there are no EMA weights in this file", do="Leave --ema out")
        if missing:
            raise UserError(f"the EMA weights are incomplete: {missing[0]} is missing")
        self.used |= set(names.values())
        return {single: self.tensors[name] for single, name in names.items()}

    def _vae(self) -> Component:
        plan = vae.plan_from_shapes(self._shapes(single_layout.VAE))
        config = self._own("vae", lambda own: vae.plan_from_config(own) == plan)
        if config is None:
            said = self.yaml.scale_factor if self.yaml else None
            config = vae.config_from_plan(
                plan,
                scaling=said or vae.SCALING[self.family],
                sample_size=1024 if self.family.startswith("sdxl") else 512,
            )
        return Component(config, self._take(single_layout.VAE, vae.pairs_of(plan)))

    def _text(self, name: str, prefix: str, index: int) -> Component:
        openclip = (self.family, name) in OPENCLIP
        plan = (text.openclip_plan if openclip else text.clip_plan)(self._shapes(prefix))
        if self.family == "sd2":
            # The text is read before the last layer, and its projection is not used.
            plan = replace(plan, layers=self._sd2_layers(plan), projection=None)
        projected = plan.projection is not None
        config = self._own(
            name, lambda own: text.plan_from_config(own, projected=projected) == plan
        )
        if config is None:
            folders = self.yaml.text_folders if self.yaml else ()
            beside = ldm_yaml.text_config(folders[index] if index < len(folders) else None) or {}
            config = text.config_from_plan(
                plan,
                heads=beside.get("num_attention_heads") or text.default_heads(plan.width),
                activation=beside.get("hidden_act", "gelu" if openclip else "quick_gelu"),
            )
        if not openclip:
            self.used.add(f"{prefix}text_model.embeddings.position_ids")
        pairs = (text.openclip_pairs if openclip else text.clip_pairs)(plan)
        return Component(config, self._take(prefix, pairs))

    def _sd2_layers(self, plan: text.TextPlan) -> int:
        """How many layers SD2 uses: all but the last, if the file has the last.

        Some programs write only the 23 that are used; a file of our own says how many.
        """
        said = (self.own.get("text_encoder") or {}).get("num_hidden_layers")
        if isinstance(said, int) and plan.layers - 1 <= said <= plan.layers:
            return said
        full = plan.projection is not None or plan.layers == 24
        return plan.layers - 1 if full and plan.layers != 23 else plan.layers

    def _own(self, name: str, fits: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
        """The configuration that our own metadata holds, if it is of these very tensors."""
        config: dict[str, Any] | None = self.own.get(name)
        if config is None:
            return None
        check_config(name, config, f"{self.path} (metadata)")
        if fits(config):
            return config
        self.warnings.append(f"the metadata's {name} configuration does not fit; shapes were used")
        return None


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str], int | None]:
    """All tensors of a file, its metadata, and the training steps that a pickle may name. What a
    safetensors file has in 8 bits is read as fp16."""
    if folders.is_folder(path):
        raise UserError("this is a folder, not a file", where=path)
    foreign = detect.foreign(path)
    if foreign is not None:
        raise Unsupported(f"this is {foreign.label}", where=path, do=foreign.advice)
    if pickles.is_pickle(path):
        loaded = pickles.read_pickle(path)
        return loaded.tensors, loaded.metadata, loaded.global_step
    return in_full(storage.read_tensors(path)), storage.read_metadata(path), None


def _own(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The configurations that our own metadata holds. Raises ``UserError`` if it is damaged."""
    try:
        own = reading.parse_json(metadata.get(OWN_KEY, "{}"))
    except ValueError as error:
        raise UserError(f"its metadata {OWN_KEY} is damaged: {error}", where=path) from error
    strange = next((name for name, config in own.items() if not isinstance(config, dict)), None)
    if strange is not None:
        raise UserError(
            f"the configuration {strange[:40]!r} in the metadata is not an object", where=path
        )
    return own


def _size(parts: ModelParts) -> dict[str, Any]:
    """The edge of the latents that the model was made for, by metadata or family.

    SD2's v models are the ones at 768 pixels; their attention overflows in fp16 unless it is
    computed in fp32.
    """
    velocity = parts.family == "sd2" and parts.prediction_type == "v_prediction"
    edge = 1024 if parts.family.startswith("sdxl") else 768 if velocity else 512
    # Two to four digits: what is beyond is no size of an image.
    said = re.fullmatch(r"(\d{2,4})x(\d{2,4})", parts.metadata.get("modelspec.resolution", ""))
    if said:
        edge = max(int(said[1]), int(said[2]))
    vae = parts.components.get("vae")
    levels = len(vae.config["block_out_channels"]) if vae else 4
    return {"sample_size": max(1, edge // 2 ** (levels - 1)), "upcast_attention": velocity}
