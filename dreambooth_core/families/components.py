"""A base in memory: its networks, and what was found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from dreambooth_core.families.base import Family
    from dreambooth_core.memory.streaming import Streaming

Configs = Mapping[str, Mapping[str, Any]]
"""The configuration of each network of a base, by the name of its folder in diffusers' layout:
``unet`` or ``transformer``, ``vae``, ``text_encoder`` …"""


@dataclass
class Components:
    """The parts of a loaded base, and what was found out about it."""

    family: Family
    denoiser: Any
    """The network that predicts: ``UNet2DConditionModel`` or one of diffusers' transformers."""
    vae: Any
    """The autoencoder."""
    text_encoders: list[nn.Module]
    tokenizers: list[Any]
    scheduler_config: dict[str, Any]
    prediction_type: str
    """``epsilon``, ``v_prediction``, ``sample``, or ``flow``."""
    source: str
    """Where it came from, as the user wrote it."""
    fingerprint: str
    """A hash of the weights; equal for equal weights wherever they lie."""
    commit: str | None = None
    """The hub's commit that it came from."""
    clip_skip: int = 1
    guidance: float = 1.0
    """What a denoiser that is told its guidance is told in training."""
    max_prompt_chunks: int = 3
    expansions: dict[int, list[int]] = field(default_factory=dict)
    """Learned tokens: the tokenizers' id and the (negative) ids that it stands for."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What its ``model_index.json`` says beside the parts, such as ``is_distilled``."""
    streaming: Streaming | None = None
    """Keeps blocks of the denoiser in RAM; None where all of it is where it runs."""
    recommended: dict[str, Any] = field(default_factory=dict)
    """What its makers recommend, from ``recommended.json`` in its folder: ``steps`` and
    ``guidance`` of sampling, ``resolution``."""

    companions: dict[str, nn.Module] = field(default_factory=dict)
    """What the family's ``companions`` names."""

    @property
    def networks(self) -> list[nn.Module]:
        """All of them: what images are made with."""
        return [*self.models.values(), self.vae, *self.companions.values()]

    @property
    def models(self) -> dict[str, nn.Module]:
        """The models that can be trained, under the names that adapters use."""
        return {self.family.denoiser: self.denoiser, **self.text_models}

    @property
    def text_models(self) -> dict[str, nn.Module]:
        """The text encoders among them."""
        return dict(zip(self.family.text_encoders, self.text_encoders, strict=False))

    @property
    def configs(self) -> dict[str, dict[str, Any]]:
        """The configuration of each network."""
        networks = {**self.models, "vae": self.vae, **self.companions}
        return {name: config_of(model) for name, model in networks.items()}

    @property
    def latent_scale(self) -> int:
        """Pixels along one side of a latent cell: 8 for nearly every autoencoder."""
        return self.family.latent_scale(self.vae.config)

    @property
    def native_size(self) -> int:
        """The side in pixels that the denoiser was made for."""
        return int(self.recommended.get("resolution") or self.family.native_size(self.configs))

    @property
    def is_told_guidance(self) -> bool:
        """Whether the denoiser has an embedding of the guidance, as distilled bases have."""
        return bool(config_of(self.denoiser).get("guidance_embeds"))

    @property
    def is_inpainting(self) -> bool:
        """Whether the denoiser also takes a mask and the masked image's latents."""
        return self.family.is_inpainting(config_of(self.denoiser))


def config_of(model: Any) -> dict[str, Any]:
    """A network's configuration as plain values, whichever library it is of."""
    config = model.config
    if hasattr(config, "to_dict"):
        values = dict(config.to_dict())
    else:  # diffusers', which forgets whose it is where a network was made from values
        values = {**config, "_class_name": type(model).__name__}
    values.pop("_name_or_path", None)  # where it lay, which is no fact of the network
    return values


@dataclass(frozen=True)
class Loaded:
    """A base as a family reads it."""

    models: dict[str, nn.Module]
    """By the names of their folders in diffusers' layout."""
    scheduler: dict[str, Any]
    prediction_type: str
    settings: dict[str, Any] = field(default_factory=dict)
