"""What a family of base models is.

A family is a record of facts and a few functions; everything that the engine knows of it stands
in one file. The trainer, the sampler, the estimator and the proof ask the record and know no name.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from dreambooth_core.devices import send
from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components, Configs, Loaded
from dreambooth_core.families.host_files.record import HostFiles
from dreambooth_core.memory.estimate import NOTHING

if TYPE_CHECKING:
    from dreambooth_core.formats.checkpoints.parts import ModelParts
    from dreambooth_core.objective.objective import Objective
    from dreambooth_core.objective.options import ObjectiveOptions


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about a batch of prompts."""

    embeds: Tensor
    """``[batch, tokens, …]``."""
    pooled: Tensor | None = None
    """``[batch, width]``, where the family has one."""
    mask: Tensor | None = None
    """``[batch, tokens]``, true where a token counts, where the family's encoder says so."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each prompt, where prompts of a batch differ and the rest is padding. On the
    host: asking a GPU for them would make it wait."""

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The same conditioning on a device and in a precision."""
        pooled = None if self.pooled is None else send(self.pooled, device).to(dtype)
        mask = None if self.mask is None else send(self.mask, device)
        return Conditioning(send(self.embeds, device).to(dtype), pooled, mask, self.lengths)

    def as_dict(self) -> dict[str, Tensor]:
        """Plain tensors of one prompt, for the cache."""
        named = {"embeds": self.embeds, "pooled": self.pooled, "mask": self.mask}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def counted(self) -> Tensor:
        """True where a token counts and is no padding, ``[batch, tokens]``."""
        count, tokens = self.embeds.shape[:2]
        lengths = torch.tensor(self.lengths or [tokens] * count)
        return send(torch.arange(tokens) < lengths[:, None], self.embeds.device)

    @classmethod
    def joined(cls, items: Sequence[Conditioning]) -> Conditioning:
        """One batch of several, the shorter ones lengthened with zeros that do not count."""
        lengths = tuple(item.embeds.shape[1] for item in items for _ in range(len(item.embeds)))
        longest = max(lengths)
        pooled = [item.pooled for item in items if item.pooled is not None]
        masks = [longer(item.mask, longest) for item in items if item.mask is not None]
        return cls(
            torch.cat([longer(item.embeds, longest) for item in items]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
            lengths if min(lengths) < longest else None,
        )

    def padded(self, tokens: int, empty: Conditioning) -> Conditioning:
        """Lengthened to ``tokens`` with chunks of the empty prompt, as the hosts do.

        ``empty`` is the conditioning of ``""`` for one prompt, one chunk long.
        """
        missing = (tokens - self.embeds.shape[1]) // empty.embeds.shape[1]
        if missing <= 0:
            return self
        filler = empty.embeds.to(self.embeds).expand(self.embeds.shape[0], -1, -1)
        return Conditioning(torch.cat([self.embeds, *[filler] * missing], dim=1), self.pooled)


def longer(values: Tensor, tokens: int) -> Tensor:
    """``[batch, tokens, …]`` lengthened with zeros."""
    missing = tokens - values.shape[1]
    if not missing:
        return values
    return torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], dim=1)


@dataclass(frozen=True)
class SizeInfo:
    """Where a training image came from, as SDXL is told (in pixels; height first)."""

    original: tuple[int, int]
    crop_top_left: tuple[int, int]
    target: tuple[int, int]


class Family(ABC):
    """One family of base models. Stateless: everything it works on is passed in."""

    name: ClassVar[str]
    label: ClassVar[str]
    pipelines: ClassVar[tuple[str, ...]]
    """Classes of diffusers that a folder of this family names in ``model_index.json``."""
    denoiser: ClassVar[str] = "transformer"
    """Name of the denoiser's folder in diffusers' layout, and of its layers in adapters."""
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer",)
    companions: ClassVar[tuple[str, ...]] = ()
    """Networks that images are made with besides; training neither uses nor changes them."""
    names: ClassVar[str] = ""
    """Under which its layers' names stand in :mod:`dreambooth_core.families.names`, if not under
    its own."""
    distilled: ClassVar[str] = ""
    """What someone should know who is about to train one that was distilled to few steps."""
    marks: ClassVar[tuple[str, ...]] = ()
    """What its prompts are framed with and not every tokenizer of the kind has as one token."""

    @property
    def networks(self) -> tuple[str, ...]:
        """All networks, by the names of their folders in diffusers' layout."""
        return (self.denoiser, "vae", *self.text_encoders, *self.companions)

    elsewhere: ClassVar[Mapping[str, str]] = {}
    """What to do about a network that is not published with the rest, by its folder."""
    classes: ClassVar[Mapping[str, str]] = {}
    """The class of each network, as ``library.Class``, where diffusers and transformers read it."""
    files: ClassVar[HostFiles | None] = None
    """How the hosts keep it in files; None where that is read elsewhere or not known."""
    trains_text: ClassVar[bool] = True
    """Whether its text encoders can be trained."""
    size_step: ClassVar[int] = 8
    """Sides of images are multiples of it, in pixels."""
    targets: ClassVar[Mapping[str, str]]
    """Which of the denoiser's layers an adapter changes, as a regular expression on their names,
    by the choices of ``method.target_modules``."""
    whole_layers: ClassVar[str] = NOTHING
    """A regular expression on the names of the denoiser's layers that are never quantised."""
    schedulers: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    """Short names of samplers: the diffusers class and what is set beside the base's own values."""

    reads_in_fp32: ClassVar[bool] = False
    """Whether its weights are in fp32 once they are read, and not in the precision of the file."""
    block_classes: ClassVar[tuple[str, ...]] = ()
    """Names of the classes of the denoiser's repeated blocks besides those that diffusers says."""

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """A network's repeated blocks, which hold most of its weights, none inside another."""
        said = ("_repeated_blocks", "_no_split_modules")
        names = set(self.block_classes).union(
            next((found for name in said if (found := getattr(network, name, None))), ())
        )
        lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
        return [block for each in lists for block in each if type(block).__name__ in names]

    def whole_in(self, network: str) -> str:
        """Which layers of a network are never quantised."""
        return self.whole_layers if network == self.denoiser else NOTHING

    # What it is, and how it is read

    @abstractmethod
    def matches(self, configs: Configs) -> bool:
        """Whether a model with these configurations belongs to this family."""

    @abstractmethod
    def load(self, path: Path, stored: ModelParts | None, *, weights: bool) -> Loaded:
        """Reads a base that lies at ``path``, on the CPU, in fp32.

        Args:
            stored: its tensors, where they were opened to recognise it.
            weights: False leaves them unread: to look at the base, not to run it.

        Raises:
            UserError: it is damaged, or of another kind.
        """

    def require_part(self, folder: Path, name: str) -> None:
        """Raises ``UserError`` where a base's folder lacks a part, whose folder is ``name``."""
        if os.path.isdir(folder / name):
            return
        raise UserError(
            f"this {self.label} has no {name.replace('_', ' ')}",
            where=f"base.model: {folder}",
            do=self.elsewhere.get(name, f"Put the folder {name} of the same model there."),
        )

    @abstractmethod
    def load_tokenizers(self, path: Path, configs: Configs) -> list[Any]:
        """The tokenizers of a base. Raises ``UserError``."""

    @abstractmethod
    def empty(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """One network without data, on the meta device."""

    @abstractmethod
    def write_folder(
        self,
        parts: Components,
        folder: Path,
        dtype: torch.dtype,
        metadata: Mapping[str, str],
        *,
        scheduler: str | None = None,
        extras: str = "all",
    ) -> None:
        """Writes the whole base in diffusers' layout, with its own sampler or another.

        Args:
            extras: ``none`` leaves out what other programs may want beside it.
        """

    def write_file(
        self, parts: Components, file: Path, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> Path | None:
        """Writes the file that hosts load, where there is such a form; returns it where it is the
        whole base."""
        return None

    @property
    def has_host_file(self) -> bool:
        """Whether :meth:`write_file` writes one."""
        return self.files is not None

    # Sizes

    def latent_scale(self, vae: Mapping[str, Any]) -> int:
        """Pixels along one side of a latent cell, from an autoencoder's configuration."""
        return int(2 ** (len(vae["block_out_channels"]) - 1))

    def vae_channels(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        """Channels of the widest layers that work on a whole image: to encode, and to decode it."""
        levels = vae["block_out_channels"]
        return int(levels[0]), int(max(levels[:2]))

    @abstractmethod
    def native_size(self, configs: Configs) -> int:
        """The side in pixels that a base of these configurations was made for."""

    def is_inpainting(self, denoiser: Mapping[str, Any]) -> bool:
        """Whether a denoiser of this configuration also takes a mask and an image."""
        return False

    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, ...]:
        """Shape of one image's latents ``(channels, …)`` for a size in pixels.

        Raises:
            UserError: this denoiser has no room for an image of that size.
        """
        scale = self.latent_scale(configs["vae"])
        return (int(configs["vae"].get("latent_channels", 4)), height // scale, width // scale)

    # Text

    @abstractmethod
    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """Text conditioning of a batch of prompts, differentiable in the text encoders."""

    def stack(
        self, items: Sequence[Conditioning], empty: Callable[[], Conditioning]
    ) -> Conditioning:
        """One batch of the conditionings of single prompts.

        Args:
            empty: gives the conditioning of the empty prompt.
        """
        return Conditioning.joined(items)

    def is_distilled(self, parts: Components) -> bool:
        """Whether a base was distilled to few steps, as far as it tells."""
        return bool(parts.settings.get("is_distilled"))

    def warnings(self, parts: Components) -> list[str]:
        """What someone who is about to train this base should know."""
        return [self.distilled] if self.distilled and self.is_distilled(parts) else []

    def first_tokens(self, parts: Components, prompt: str) -> list[str]:
        """A prompt as its tokens, for the receipt: shows what the model really reads."""
        tokenizer = parts.tokenizers[0]
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]

    # Latents

    def encode_pixels(self, parts: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the autoencoder's latents of images ``[n, 3, height, width]``."""
        found = parts.vae.encode(pixels).latent_dist
        return found.mean, found.std

    def scaled(self, parts: Components, latents: Tensor) -> Tensor:
        """The autoencoder's latents as the denoiser sees them: of about unit size."""
        config = parts.vae.config
        return (latents - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    def unscaled(self, parts: Components, latents: Tensor) -> Tensor:
        """What the autoencoder decodes, from what the denoiser makes."""
        config = parts.vae.config
        return latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)

    def decode_pixels(self, parts: Components, latents: Tensor) -> Tensor:
        """Images ``[n, 3, height, width]`` in [-1, 1] of unscaled latents."""
        pixels: Tensor = parts.vae.decode(latents, return_dict=False)[0]
        return pixels

    # Training

    @abstractmethod
    def objective(self, options: ObjectiveOptions, parts: Components) -> Objective:
        """Noise, target, weight and loss. Raises ``UserError`` for options that do not fit."""

    @abstractmethod
    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        """The denoiser's answer to noisy latents, in the shape and the sign of the target.

        Args:
            noisy: ``[batch, *latent_shape]``.
            timesteps: ``[batch]``, as the family's objective draws them.
            inpainting: ``[batch, 5, height, width]`` (mask, masked latents), where that is asked.
        """

    @abstractmethod
    def middle_time(self, parts: Components) -> float:
        """A timestep half way, as :meth:`predict` takes them: for the proof on save."""

    # Sampling

    @abstractmethod
    def pipeline_class(self, parts: Components) -> type[Any]:
        """The diffusers pipeline that generates with this family."""

    def pipeline_modules(self, parts: Components) -> dict[str, Any]:
        """What that pipeline is made of, but the scheduler."""
        return {
            "vae": parts.vae,
            **parts.models,
            **dict(zip(self.tokenizers, parts.tokenizers, strict=True)),
        }

    def scheduler(self, parts: Components, name: str) -> tuple[str, dict[str, Any]]:
        """Class and configuration of a sampler; an empty name is the base's own."""
        own = {k: v for k, v in parts.scheduler_config.items() if not k.startswith("_")}
        kind, changes = self.schedulers.get(name) or self.own_scheduler(parts)
        return kind, {**own, **changes}

    @abstractmethod
    def own_scheduler(self, parts: Components) -> tuple[str, Mapping[str, Any]]:
        """The sampler of a base that is asked for none by name."""

    @abstractmethod
    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        """What the pipeline is called with for these prompts: embeddings on its device."""

    def readied(self, pipeline: Any, height: int, width: int) -> None:
        """Makes a pipeline draw images of this size, where its own call would change it."""
        return

    def latents_of(self, parts: Components, made: Tensor, height: int, width: int) -> Tensor:
        """What the pipeline gives as latents, in the shape that :meth:`scaled` gives."""
        return made

    # Memory

    @abstractmethod
    def meta_step(
        self,
        parts: Components,
        texts: Mapping[str, nn.Module] | None,
        *,
        batch: int,
        height: int,
        width: int,
        dtype: torch.dtype,
    ) -> Callable[[], Tensor]:
        """A training step's forward pass up to the loss, with parts on the meta device.

        Args:
            texts: the text encoders that are trained, which then run in the step too.
        """
