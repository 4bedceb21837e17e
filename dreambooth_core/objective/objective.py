"""``Objective``: everything between clean latents and a loss, but the model.

It owns the prediction type, so the training loop never asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.objective import losses as loss_functions
from dreambooth_core.objective import noise as noise_functions
from dreambooth_core.objective import schedule, targets
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.objective.timesteps import timestep, timestep_range
from dreambooth_core.objective.weights import weights
from dreambooth_core.randomness import Key, generator, uniform
from dreambooth_core.transfer import send


@dataclass(frozen=True)
class NoisySample:
    """A batch made ready for the model."""

    noisy: Tensor
    """What the model sees, ``[B, C, H, W]``, in the latents' dtype."""
    target: Tensor
    """What it should answer, ``[B, C, H, W]``, fp32."""
    timesteps: Tensor
    """``[B]``, int64."""
    noise: Tensor
    """The noise that it is asked for (without input perturbation), ``[B, C, H, W]``, fp32."""
    weights: Tensor
    """Weight of each sample's loss, ``[B]``, fp32."""
    thresholds: Tensor
    """Where Huber and smooth L1 turn linear, ``[B]``, fp32."""

    def __len__(self) -> int:
        return int(self.timesteps.shape[0])


class Objective:
    """Noise, target, weight and loss of a training batch.

    Args:
        options: the ``objective`` section of the configuration.
        alphas_cumprod: the base's noise schedule, ``[T]``.
        prediction_type: what the base predicts: ``epsilon``, ``v_prediction`` or ``sample``.

    Raises:
        UserError: ``zero_terminal_snr`` with an epsilon base; an empty range of timesteps; an
            unknown prediction type.
    """

    def __init__(
        self, options: ObjectiveOptions, alphas_cumprod: Tensor, prediction_type: str
    ) -> None:
        self.options = options
        self.prediction_type = targets.check(prediction_type)
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        timestep_range(options, self.steps)
        if options.zero_terminal_snr:
            if prediction_type == "epsilon":
                raise UserError(
                    "zero terminal SNR cannot be trained on a base that predicts epsilon: "
                    "in pure noise there is nothing of the picture left to tell apart",
                    where="objective.zero_terminal_snr",
                    do="Switch it off, or take a base with v-prediction.",
                )
            self.alphas_cumprod = schedule.rescale_to_zero_terminal_snr(self.alphas_cumprod)
        self.snr = schedule.snr(self.alphas_cumprod)

    @property
    def steps(self) -> int:
        """Number of timesteps of the schedule."""
        return int(self.alphas_cumprod.shape[0])

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
            drawn = [timestep(uniform(*key, "timestep"), self.options, self.steps) for key in keys]
            timesteps = torch.tensor(drawn, dtype=torch.int64)
        shape = latents.shape[1:]
        asked = torch.stack([self._noise(shape, key) for key in keys])
        shown = self._shown(asked, keys)
        on = latents.device
        index = timesteps.cpu()
        kept = send(self.alphas_cumprod[index], on)
        asked = send(asked, on)
        shown = asked if shown is None else send(shown, on)
        clean = latents.detach().float()
        options = self.options
        return NoisySample(
            noisy=schedule.add_noise(clean, shown, kept).to(latents.dtype),
            target=targets.target(self.prediction_type, clean, asked, kept),
            timesteps=send(timesteps, on),
            noise=asked,
            weights=send(
                weights(
                    self.snr[index],
                    self.prediction_type,
                    options.weighting,
                    options.min_snr_gamma,
                    options.max_weight,
                ),
                on,
            ),
            thresholds=send(self._thresholds(index), on),
        )

    def losses(self, prediction: Tensor, sample: NoisySample, mask: Tensor | None = None) -> Tensor:
        """Weighted loss of each sample, ``[B]``, fp32.

        ``prediction`` ``[B, C, H, W]`` of any floating dtype; ``mask`` ``[B, 1, h, w]`` in
        [0, 1] of the picture's or the latents' size.
        """
        options = self.options
        each = loss_functions.elementwise(
            options.loss, prediction, sample.target, sample.thresholds
        )
        means = loss_functions.mean_per_sample(each, mask, options.mask_floor)
        return means * sample.weights

    def _noise(self, shape: torch.Size, key: tuple[Key, ...]) -> Tensor:
        options = self.options
        noise = noise_functions.gaussian(shape, generator(*key, "noise"))
        if options.pyramid_noise > 0:
            noise = noise_functions.pyramid(
                noise, options.pyramid_noise, options.pyramid_levels, generator(*key, "pyramid")
            )
        if options.offset_noise > 0:
            noise = noise_functions.offset(noise, options.offset_noise, generator(*key, "offset"))
        return noise

    def _shown(self, asked: Tensor, keys: Sequence[tuple[Key, ...]]) -> Tensor | None:
        """The perturbed noise, or ``None`` where the model is shown what it is asked for."""
        strength = self.options.input_perturbation
        if strength <= 0:
            return None
        pairs = zip(asked, keys, strict=True)
        return torch.stack(
            [
                noise_functions.perturbed(n, strength, generator(*k, "perturbation"))
                for n, k in pairs
            ]
        )

    def _thresholds(self, index: Tensor) -> Tensor:
        options = self.options
        kept = self.alphas_cumprod[index]
        return loss_functions.huber_threshold(
            options.huber_schedule, options.huber_c, index, kept, self.steps
        )
