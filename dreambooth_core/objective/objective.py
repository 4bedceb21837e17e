"""``Objective``: everything between clean latents and a loss, but the model.

It owns what the model is asked to predict, so the training loop never asks for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.objective import losses as loss_functions
from dreambooth_core.objective import noise as noise_functions
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.randomness import Key, generator, uniform


@dataclass(frozen=True)
class NoisySample:
    """A batch made ready for the model."""

    noisy: Tensor
    """What the model sees, ``[B, C, H, W]``, in the latents' dtype."""
    target: Tensor
    """What it should answer, ``[B, C, H, W]``, fp32."""
    timesteps: Tensor
    """``[B]``: of diffusion the index in the schedule, int64; of rectified flow the share of
    noise in (0, 1), fp32."""
    noise: Tensor
    """The noise that it is asked for (without input perturbation), ``[B, C, H, W]``, fp32."""
    weights: Tensor
    """Weight of each sample's loss, ``[B]``, fp32."""
    thresholds: Tensor
    """Where Huber and smooth L1 turn linear, ``[B]``, fp32."""

    def __len__(self) -> int:
        return int(self.timesteps.shape[0])


class Objective(ABC):
    """Noise, target, weight and loss of a training batch."""

    def __init__(self, options: ObjectiveOptions) -> None:
        self.options = options

    @abstractmethod
    def timesteps(self, positions: Sequence[float], shape: torch.Size) -> Tensor:
        """``[B]`` on the CPU, of uniform numbers in [0, 1), for latents of ``shape``."""

    @abstractmethod
    def sample(
        self, latents: Tensor, asked: Tensor, shown: Tensor, timesteps: Tensor
    ) -> NoisySample:
        """Clean ``latents`` ``[B, C, H, W]`` with the noise that is ``shown``, and as target the
        noise that is ``asked`` for, fp32 on the latents' device; ``timesteps`` on the CPU."""

    def draw(
        self,
        latents: Tensor,
        keys: Sequence[tuple[Key, ...]],
        timesteps: Tensor | None = None,
    ) -> NoisySample:
        """Noises clean ``latents`` ``[B, C, H, W]``, sample ``i`` by ``keys[i]`` alone.

        Each purpose has a stream of its own, so switching offset noise on changes neither the
        timesteps nor the Gaussian noise. ``timesteps`` ``[B]`` fixes them, for evaluation.
        """
        if len(keys) != latents.shape[0]:
            raise ValueError(f"{len(keys)} keys for {latents.shape[0]} latents")
        if timesteps is None:
            timesteps = self.timesteps([uniform(*key, "timestep") for key in keys], latents.shape)
        asked = torch.stack([self._noise(latents.shape[1:], key) for key in keys])
        shown = self._shown(asked, keys)
        asked = send(asked, latents.device)
        shown = asked if shown is None else send(shown, latents.device)
        return self.sample(latents.detach(), asked, shown, timesteps.cpu())

    def losses(self, prediction: Tensor, sample: NoisySample, mask: Tensor | None = None) -> Tensor:
        """Weighted loss of each sample, ``[B]``, fp32.

        ``prediction`` ``[B, C, H, W]`` of any floating dtype; ``mask`` ``[B, 1, h, w]`` in
        [0, 1] of the image's or the latents' size.
        """
        options = self.options
        each = loss_functions.elementwise(
            options.loss, prediction, sample.target, sample.thresholds
        )
        means = loss_functions.mean_per_sample(each, mask)
        return means * sample.weights

    def _noise(self, shape: torch.Size, key: tuple[Key, ...]) -> Tensor:
        options = self.options
        noise = noise_functions.gaussian(shape, generator(*key, "noise"))
        if options.multires_noise_discount > 0:
            noise = noise_functions.pyramid(
                noise,
                options.multires_noise_discount,
                options.multires_noise_iterations,
                generator(*key, "pyramid"),
            )
        if options.noise_offset > 0:
            noise = noise_functions.offset(noise, options.noise_offset, generator(*key, "offset"))
        return noise

    def _shown(self, asked: Tensor, keys: Sequence[tuple[Key, ...]]) -> Tensor | None:
        """The perturbed noise, or ``None`` where the model is shown what it is asked for."""
        strength = self.options.ip_noise_gamma
        if strength <= 0:
            return None
        pairs = zip(asked, keys, strict=True)
        return torch.stack(
            [
                noise_functions.perturbed(n, strength, generator(*k, "perturbation"))
                for n, k in pairs
            ]
        )
