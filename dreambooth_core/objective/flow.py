"""Rectified flow: a straight line from the image to noise, and the direction as target.

Liu et al. 2022 (arXiv:2209.03003), Esser et al. 2024 (arXiv:2403.03206): with the share of noise
s in (0, 1) a noisy latent is ``(1 - s) * x0 + s * noise``, and the target is
``v = noise - x0``. Families that call it otherwise (Z-Image counts the share of the image, and
answers -v) translate in their own ``predict``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.errors import UserError
from dreambooth_core.objective.objective import (
    NoisySample,
    Objective,
    huber_threshold,
    per_sample,
    position,
    unknown_weighting,
)
from dreambooth_core.objective.options import FLOW_WEIGHTINGS, ObjectiveOptions
from dreambooth_core.objective.shift import FlowDefaults, shifted

STEPS = 1000
"""``min_timestep`` and ``max_timestep`` count thousandths of noise."""
MARGIN = 1e-5
"""Smallest share of noise, and of the image, that is trained."""


class Flow(Objective):
    """Noise, target, weight and loss of a batch for a rectified-flow base.

    Args:
        options: the ``objective`` section of the configuration.
        defaults: what ``auto`` means for the base's family.

    Raises:
        UserError: ``zero_terminal_snr``; an empty range of timesteps; a weighting of diffusion; a
            shift that the family has no rule for.
    """

    def __init__(self, options: ObjectiveOptions, defaults: FlowDefaults | None = None) -> None:
        self.defaults = defaults or FlowDefaults()
        super().__init__(self.defaults.resolved(options))
        low, high = options.timestep_range(STEPS)
        self.range = low / STEPS, (high + 1) / STEPS
        if options.zero_terminal_snr:
            raise UserError(
                "zero terminal SNR is for diffusion bases: rectified flow ends in pure noise as "
                "it is",
                where="objective.zero_terminal_snr",
                do="Switch it off.",
            )
        weights(torch.ones(1), options.weighting, options.max_weight)

    def timesteps(self, positions: Sequence[float], shape: torch.Size) -> Tensor:
        """The share of noise of each sample, ``[B]``, fp32, from ``MARGIN`` to 1 - ``MARGIN``."""
        factor = self._factor(shape)
        low, high = self.range
        drawn = [low + (high - low) * shifted(position(p, self.options), factor) for p in positions]
        return torch.tensor([min(max(s, MARGIN), 1.0 - MARGIN) for s in drawn])

    def sample(
        self, latents: Tensor, asked: Tensor, shown: Tensor, timesteps: Tensor
    ) -> NoisySample:
        on, options = latents.device, self.options
        timesteps = timesteps.float()
        clean = latents.float()
        share = send(timesteps, on)
        kept = (1.0 - timesteps).square() / ((1.0 - timesteps).square() + timesteps.square())
        spread = per_sample(share, clean)
        return NoisySample(
            noisy=((1.0 - spread) * clean + spread * shown).to(latents.dtype),
            target=asked - clean,
            timesteps=share,
            noise=asked,
            weights=weights(share, options.weighting, options.max_weight),
            thresholds=send(huber_threshold(options, timesteps, kept, 1), on),
        )

    def _factor(self, shape: torch.Size) -> float:
        """The factor of the shift for latents of ``shape`` ``[..., height, width]``."""
        options, rule = self.options, self.defaults.resolution_mu
        if options.shift == "static" and options.shift_factor is not None:
            return options.shift_factor
        if options.shift == "resolution" and rule is not None:
            return math.exp(rule(self.defaults.tokens(int(shape[-2]), int(shape[-1]))))
        return 1.0


def weights(noise_share: Tensor, weighting: str, cap: float) -> Tensor:
    """The weights of rectified flow's loss on v, by the share of noise s.

    As in diffusers' scripts for SD3 (Esser et al. 2024, arXiv:2403.03206): ``sigma_sqrt``:
    ``1 / s²``, here at most ``cap``; ``cosmap``: ``2 / (pi * (1 - 2s + 2s²))``.
    ``sigma_squared``: ``s²``, which compares the clean latents instead of v
    (``--precondition_outputs``).

    Raises:
        UserError: another weighting.
    """
    s = noise_share
    if weighting == "none":
        return torch.ones_like(s)
    if weighting == "sigma_sqrt":
        return s.pow(-2.0).clamp(max=cap)
    if weighting == "sigma_squared":
        return s.square()
    if weighting == "cosmap":
        return 2.0 / (math.pi * (1.0 - 2.0 * s + 2.0 * s.square()))
    raise unknown_weighting(weighting, "rectified-flow", FLOW_WEIGHTINGS)
