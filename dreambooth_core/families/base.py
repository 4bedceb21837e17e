"""What a family of base models must be able to do, and the parts that make up one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreambooth_core.families.text import Conditioning, encode_chunks, tokenise


@dataclass
class Components:
    """The parts of a loaded base, and what was found out about it."""

    family: Family
    unet: Any
    """``UNet2DConditionModel``."""
    vae: Any
    """``AutoencoderKL``."""
    text_encoders: list[nn.Module]
    tokenizers: list[Any]
    scheduler_config: dict[str, Any]
    prediction_type: str
    source: str
    """Where it came from, as the user wrote it."""
    fingerprint: str
    """A hash of the weights; equal for equal weights wherever they lie."""
    commit: str | None = None
    """The hub's commit that it came from."""
    clip_skip: int = 1
    max_prompt_chunks: int = 3
    expansions: dict[int, list[int]] = field(default_factory=dict)
    """Learned tokens: the tokenizers' id and the (negative) ids that it stands for."""
    recommended: dict[str, Any] = field(default_factory=dict)
    """What its makers recommend for sampling, from ``recommended.json`` in its folder:
    ``steps``, ``guidance``."""

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models that can be trained, under the names that adapters use."""
        names = ["text_encoder", "text_encoder_2"]
        return {"unet": self.unet, **dict(zip(names, self.text_encoders, strict=False))}

    @property
    def latent_scale(self) -> int:
        """Pixels along one side of a latent cell: 8 for every known autoencoder."""
        return latent_scale(self.vae.config)

    @property
    def native_size(self) -> int:
        """The side in pixels that the UNet was made for."""
        return native_size(self.unet.config, self.vae.config)

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet also takes a mask and the masked picture's latents."""
        return int(self.unet.config.in_channels) == 9


def latent_scale(vae: Mapping[str, Any]) -> int:
    """Pixels along one side of a latent cell, from an autoencoder's configuration."""
    return int(2 ** (len(vae["block_out_channels"]) - 1))


def native_size(unet: Mapping[str, Any], vae: Mapping[str, Any]) -> int:
    """The side in pixels that a UNet was made for, from the configurations of a base."""
    size = unet.get("sample_size") or 64
    edge = max(size) if isinstance(size, (list, tuple)) else size
    return int(edge) * latent_scale(vae)


@dataclass(frozen=True)
class SizeInfo:
    """Where a training picture came from, as SDXL is told (in pixels; height first)."""

    original: tuple[int, int]
    crop_top_left: tuple[int, int]
    target: tuple[int, int]


class Family(ABC):
    """One family of base models. Stateless: everything it works on is passed in."""

    name: ClassVar[str]
    label: ClassVar[str]

    @abstractmethod
    def matches(self, unet_config: dict[str, Any], text_configs: Sequence[dict[str, Any]]) -> bool:
        """Whether a model with these configurations belongs to this family."""

    @abstractmethod
    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """Text conditioning of a batch of prompts, differentiable in the text encoders."""

    @abstractmethod
    def pipeline_class(self, parts: Components) -> type[Any]:
        """The diffusers pipeline that generates with this family."""

    def added_conditions(
        self, parts: Components, conditioning: Conditioning, sizes: Sequence[SizeInfo]
    ) -> dict[str, Tensor] | None:
        """What the UNet takes besides the text; nothing in most families."""
        return None

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        """The UNet's output for noisy latents ``[batch, 4, height, width]``.

        ``inpainting`` is ``[batch, 5, height, width]`` (mask, masked latents) for a UNet with
        nine input channels.
        """
        if inpainting is not None:
            noisy = torch.cat([noisy, inpainting.to(noisy)], dim=1)
        added = self.added_conditions(parts, conditioning, sizes)
        output: Tensor = parts.unet(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning.embeds,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output

    def first_tokens(self, parts: Components, prompt: str) -> list[str]:
        """A prompt as its tokens, for the receipt: shows what the model really reads."""
        tokenizer = parts.tokenizers[0]
        ids = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        return [str(token) for token in tokenizer.convert_ids_to_tokens(ids)]


def scaled_latents(parts: Components, latents: Tensor) -> Tensor:
    """The autoencoder's latents as the UNet sees them: shifted and scaled to about unit size."""
    config = parts.vae.config
    shift = getattr(config, "shift_factor", None) or 0.0
    return (latents - shift) * config.scaling_factor


def encode_single(parts: Components, prompts: Sequence[str]) -> Conditioning:
    """Conditioning of the families with one CLIP text encoder whose final norm is applied."""
    ids = tokenise(
        parts.tokenizers[0],
        prompts,
        max_chunks=parts.max_prompt_chunks,
        expansions=parts.expansions,
    )
    embeds, _ = encode_chunks(parts.text_encoders[0], ids, skip=parts.clip_skip - 1, normalise=True)
    return Conditioning(embeds)
