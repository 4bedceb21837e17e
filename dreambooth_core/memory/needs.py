"""The memory that a configuration needs, from the base's configurations alone."""

from __future__ import annotations

import copy
import logging
import os
from collections import OrderedDict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dreambooth_core.bases.locate import locate
from dreambooth_core.devices import DTYPES, STORED, choose_device
from dreambooth_core.errors import FAILURES
from dreambooth_core.families.base import Family
from dreambooth_core.families.components import Components, Configs
from dreambooth_core.families.loading import read_configs, recommended
from dreambooth_core.families.registry import family_of
from dreambooth_core.memory.estimate import (
    CUDA_CONTEXT,
    Estimate,
    Estimator,
    Lying,
    Part,
)
from dreambooth_core.memory.measure import Room, room
from dreambooth_core.memory.models import encoding_peak
from dreambooth_core.methods.base import method_for
from dreambooth_core.options import TrainConfig, with_resolution
from dreambooth_core.options.combinations import Asked
from dreambooth_core.quiet import quieten

log = logging.getLogger(__name__)

PROGRAM = 3 * 1024**3
"""RAM of the program with torch, CUDA and the libraries of models. A rule of thumb."""


@dataclass(frozen=True)
class Needs:
    """What a run needs of the training device, in bytes."""

    family: str
    training: Estimate
    encoding: int
    """While images are encoded: every model is on the device."""
    class_images: int
    """While class images are made, if prior preservation is on. Those that are there already
    need nothing."""
    ram: int
    """Of the computer's memory: the base as it is read, and what of it stays there or comes back,
    with the program itself. Half of a rule of thumb."""

    @property
    def peak(self) -> int:
        """The most at any time."""
        return max(self.training.peak, self.encoding, self.class_images)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **asdict(self.training),
            "training_peak": self.training.peak,
            "encoding": self.encoding,
            "class_images": self.class_images,
            "ram": self.ram,
            "peak": self.peak,
            "family": self.family,
        }

    def rows(self) -> list[tuple[str, int]]:
        """Name and bytes of each part, the peak of the whole run last."""
        return [
            *self.training.rows(),
            ("while training", self.training.peak),
            ("while encoding images", self.encoding),
            *([("while making class images", self.class_images)] if self.class_images else []),
            *([("in RAM", self.ram)] if self.training.streamed else []),
            ("peak", self.peak),
        ]


def locate_base(config: TrainConfig) -> Path:
    """Where the base lies. Raises ``UserError`` if it is nowhere."""
    base = config.base
    return locate(base.model, revision=base.revision, variant=base.variant)


class Base:
    """A run's base on the meta device with what is trained, and a trace of its step.

    Args:
        config: what is to be trained, with its resolution.
        configs: of the base's networks.
        device: ``cuda``, ``cpu`` …
    """

    def __init__(self, config: TrainConfig, configs: Configs, device: str) -> None:
        family = family_of(configs, f"base.model: {config.base.model}")
        quieten()
        self.dtype = DTYPES[config.run.mixed_precision]
        parts = self._parts(config, configs, family)
        self.family = family.name
        self.reads_in_fp32 = family.reads_in_fp32
        self.bytes = sum(_bytes(model) for model in parts.networks)
        self.numbers = sum(p.numel() for model in parts.networks for p in model.parameters())
        method = method_for(config.method, parts)
        in_bf16 = config.run.mixed_precision == "full_bf16"
        method.attach(0, self.dtype if in_bf16 else torch.float32)
        self.vae: Any = parts.vae
        self.channels = family.vae_channels(configs["vae"])
        models = parts.models
        texts = {name: model for name, model in models.items() if name != family.denoiser}
        cached = config.data.cache != "none"
        texts_stay = method.trains_text or not cached
        vae_stays = not (cached and config.data.has_finite_views) or parts.is_inpainting
        height, width = config.data.fixed_size()
        seen = []
        for name, model in models.items():
            denoises, whole = name == family.denoiser, family.whole_in(name)
            blocks = family.blocks(model) if denoises or not texts_stay else ()
            seen.append(Part(name, model, denoises or texts_stay, whole, blocks))
        self.estimator = Estimator(
            [*seen, Part("vae", parts.vae, resident=vae_stays)],
            family.meta_step(
                parts,
                texts if method.trains_text else None,
                batch=images_at_once(config),
                height=height,
                width=width,
                dtype=self.dtype,
            ),
            precision=config.run.mixed_precision,
            device=device,
        )

    def _parts(self, config: TrainConfig, configs: Configs, family: Family) -> Components:
        """The base as the trainer places it: frozen, in the run's precision."""
        models = {name: family.empty(name, configs[name]) for name in family.networks}
        for name, model in models.items():
            model.to(torch.float32 if name == "vae" else self.dtype).requires_grad_(False)
        return Components(
            family=family,
            denoiser=models[family.denoiser],
            vae=models["vae"],
            text_encoders=[models[name] for name in family.text_encoders],
            tokenizers=[],
            scheduler_config={},
            prediction_type="",
            source=config.base.model,
            fingerprint="",
            companions={name: models[name] for name in family.companions},
        )


KEPT = 4
"""Traces that are kept: a budget tries several, a run is estimated more than once, and in a process
that goes on so is the next run."""
_BASES: OrderedDict[str, Base] = OrderedDict()


def traced(config: TrainConfig, configs: Configs, device: str) -> Base:
    """The base of a configuration, from before if anything was traced that is no different."""
    precision, images = config.run.mixed_precision, images_at_once(config)
    asked = (config.base, config.method, config.data, precision, images, device)
    key = f"{asked!r} {configs!r}"
    found = _BASES.pop(key, None) or Base(config, configs, device)
    _BASES[key] = found
    while len(_BASES) > KEPT:
        _BASES.popitem(last=False)
    return found


class Planner:
    """Answers for one configuration, and in no time for cheaper settings of it.

    Args:
        config: what is to be trained.
        configs: the base's networks; read from the base if None.
        device: ``cuda``, ``cpu`` … in place of what the configuration says.
    """

    def __init__(
        self,
        config: TrainConfig,
        configs: Configs | None = None,
        *,
        device: str | None = None,
    ) -> None:
        said: dict[str, Any] = {}
        if configs is None:  # no weight is read where the file allows it
            place = locate_base(config)
            configs, said = read_configs(config.base, place), recommended(place)
        self.configs: Configs = configs
        family = family_of(configs, f"base.model: {config.base.model}")
        native = int(said.get("resolution", family.native_size(configs)))
        self.config = config = with_resolution(config, native)
        self.device = device or device_kind(config.run.device)
        self.processes = int(os.environ.get("WORLD_SIZE") or 1)
        self.base = traced(config, self.configs, self.device)
        self.family = self.base.family

    def changed(self, config: TrainConfig) -> Planner:
        """A planner for another configuration of the same run; traces anew only if it must."""
        other = copy.copy(self)
        other.config, other.base = config, traced(config, self.configs, self.device)
        return other

    @property
    def asked(self) -> Asked:
        """The configuration, and where it is to run."""
        return Asked(self.config, self.device, self.processes)

    def needs(self) -> Needs:
        """What the configuration needs."""
        driver = CUDA_CONTEXT if self.device == "cuda" else 0
        return Needs(
            self.family,
            self.base.estimator.estimate(self.asked),
            encoding=driver + self._encoding(),
            class_images=(driver + self._imaging() if self.config.prior.makes_images else 0),
            ram=self._ram(),
        )

    def _ram(self) -> int:
        """The base as it is read, with what lies in RAM beside the rest of it while training."""
        read = self.base.numbers * (4 if self.base.reads_in_fp32 else torch.bfloat16.itemsize)
        denoiser, *others = (Lying(part, self.asked) for part in self.base.estimator.parts)
        lying = sum(part.whole for part in others) + denoiser.away + denoiser.states
        return PROGRAM + max(read, lying)

    def _encoding(self) -> int:
        """What encoding takes: one network after another comes to the device, quantised as it
        comes, where none is there from making class images."""
        data = self.config.data
        batch, (height, width) = data.cache_batch_size, data.largest_size()
        images = encoding_peak(
            self.base.vae, self.base.channels[0], batch=batch, height=height, width=width
        )
        if self.config.prior.makes_images:
            return self.base.bytes + images - _bytes(self.base.vae)
        denoiser, *texts, _ = (Lying(p, self.asked).on_device for p in self.base.estimator.parts)
        return max(images, denoiser, sum(texts))

    def _imaging(self) -> int:
        """What making class images takes with all weights, which are in fp32 where class images
        have a precision of their own. A denoiser that is streamed is then streamed too."""
        own = STORED.get(self.config.prior.precision, self.base.dtype) != self.base.dtype
        whole = 4 * self.base.numbers if own else self.base.bytes
        stream = Lying(self.base.estimator.parts[0], self.asked, quantized=False)
        away = stream.away - stream.here
        return whole - (2 * away if own else away) + self._decoding()

    def _decoding(self) -> int:
        """What decoding class images takes besides all weights: three tensors of the widest
        layers at full size, a convolution's input and output and a norm's copy."""
        height, width = self.config.data.largest_size()
        pixels = height * width * self.config.prior.batch_size
        return 3 * self.base.channels[1] * pixels * 4


def estimate_of(config: TrainConfig, configs: Configs, device: torch.device) -> Needs | None:
    """What the run is estimated to need; None where that fails: no reason not to train."""
    try:
        return Planner(config, configs, device=device.type).needs()
    except FAILURES:
        log.exception("the memory could not be estimated")
        return None


def device_kind(wanted: str) -> str:
    """``cuda``, ``cpu`` …: as the user said, whether it is here or not; else what is here."""
    return choose_device("auto").type if wanted == "auto" else wanted.split(":")[0]


def device_room(kind: str) -> Room | None:
    """Memory of this computer's device of that kind; None if there is none."""
    here = choose_device("auto").type
    if kind not in (here, "cpu"):
        return None
    return room(torch.device(kind))


def images_at_once(config: TrainConfig) -> int:
    """Images in one forward pass: class images join those of the subject."""
    return config.run.batch_size * (1 + config.prior.enabled + config.prefers)


def _bytes(model: nn.Module) -> int:
    return sum(p.nbytes for p in model.parameters())
