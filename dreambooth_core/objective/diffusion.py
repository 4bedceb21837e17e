"""Diffusion: noise by the schedule of a base that predicts epsilon, v or the clean latents."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.errors import UserError
from dreambooth_core.objective import losses, schedule, targets
from dreambooth_core.objective.objective import NoisySample, Objective
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.objective.timesteps import timestep, timestep_range
from dreambooth_core.objective.weights import weights


class Diffusion(Objective):
    """Noise, target, weight and loss of a batch for a diffusion base.

    Args:
        options: the ``objective`` section of the configuration.
        alphas_cumprod: the base's noise schedule, ``[T]``.
        prediction_type: what the base predicts: ``epsilon``, ``v_prediction`` or ``sample``.

    Raises:
        UserError: ``zero_terminal_snr`` with an epsilon base; an empty range of timesteps; an
            unknown prediction type; a weighting or a shift of rectified flow.
    """

    def __init__(
        self, options: ObjectiveOptions, alphas_cumprod: Tensor, prediction_type: str
    ) -> None:
        super().__init__(options)
        self.prediction_type = targets.check(prediction_type)
        self.alphas_cumprod = alphas_cumprod.detach().float().cpu()
        timestep_range(options, self.steps)
        if options.shift not in ("auto", "none"):
            raise UserError(
                "a timestep shift is for rectified-flow bases, and this is a diffusion base",
                where="objective.shift",
                do="Leave it at auto.",
            )
        if options.zero_terminal_snr:
            if prediction_type == "epsilon":
                raise UserError(
                    "zero terminal SNR cannot be trained on a base that predicts epsilon: "
                    "in pure noise there is nothing of the image left to tell apart",
                    where="objective.zero_terminal_snr",
                    do="Switch it off, or take a base with v-prediction.",
                )
            self.alphas_cumprod = schedule.rescale_to_zero_terminal_snr(self.alphas_cumprod)
        self.snr = schedule.snr(self.alphas_cumprod)
        self._weights(self.snr[:1])

    @property
    def steps(self) -> int:
        """Number of timesteps of the schedule."""
        return int(self.alphas_cumprod.shape[0])

    def timesteps(self, positions: Sequence[float], shape: torch.Size) -> Tensor:
        drawn = [timestep(position, self.options, self.steps) for position in positions]
        return torch.tensor(drawn, dtype=torch.int64)

    def sample(
        self, latents: Tensor, asked: Tensor, shown: Tensor, timesteps: Tensor
    ) -> NoisySample:
        on, options = latents.device, self.options
        kept = self.alphas_cumprod[timesteps]
        kept_there = send(kept, on)
        clean = latents.float()
        return NoisySample(
            noisy=schedule.add_noise(clean, shown, kept_there).to(latents.dtype),
            target=targets.target(self.prediction_type, clean, asked, kept_there),
            timesteps=send(timesteps, on),
            noise=asked,
            weights=send(self._weights(self.snr[timesteps]), on),
            thresholds=send(
                losses.huber_threshold(
                    options.huber_schedule, options.huber_c, timesteps, kept, self.steps
                ),
                on,
            ),
        )

    def _weights(self, snr: Tensor) -> Tensor:
        options = self.options
        return weights(
            snr,
            self.prediction_type,
            options.weighting,
            options.min_snr_gamma,
            options.max_weight,
        )
