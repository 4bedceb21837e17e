"""Images as A1111's WebUI and ComfyUI make them: with their noise, steps and samplers.

The image of a seed is another one in each program, and in diffusers. What differs is told here for
the families with a UNet: where the noise is drawn and how it is scaled, which noise levels are
passed through, whether times are rounded, and how a byte is rounded.

Noise levels are Karras et al.'s sigmas (2022, arXiv:2206.00364); DDIM (Song et al. 2020,
arXiv:2010.02502) is Euler's method over them. DPM++ 2M is Lu et al. 2022 (arXiv:2211.01095).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import log

import torch
from torch import Tensor

from dreambooth_core.errors import Stopped, UserError
from dreambooth_core.families.base import SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.objective.diffusion import alphas_of

HOSTS = ("a1111", "comfyui")
SAMPLERS = ("ddim", "euler", "dpm++")
"""Those of ours that the hosts have under the same name; ``dpm++`` is their DPM++ 2M."""

SCHEDULES = {
    "a1111": ("automatic", "uniform", "karras", "exponential", "sgm_uniform"),
    "comfyui": ("normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform"),
}
"""How the noise levels are spaced, by the hosts' names; the first is what the host begins with."""

RHO = 7.0
"""Of Karras' spacing."""


@dataclass(frozen=True)
class Like:
    """Which host's images are made."""

    host: str
    sampler: str = "ddim"
    schedule: str = ""
    """One of the host's :data:`SCHEDULES`; empty for the first."""
    cpu_noise: bool = False
    """Whether A1111 draws noise on the CPU (its setting "Random number generator source"); ComfyUI
    always does."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(
                f"{self.sampler} of the hosts is not known",
                where="scheduler",
                do=f"Choose one of {', '.join(SAMPLERS)}.",
            )
        if self.schedule and self.schedule not in SCHEDULES[self.host]:
            raise UserError(
                f"{self.host} has no schedule {self.schedule!r}",
                where="schedule",
                do=f"Choose one of {', '.join(SCHEDULES[self.host])}.",
            )

    def check(self, parts: Components) -> None:
        """Raises ``UserError`` for a base whose images cannot be made so."""
        if parts.family.denoiser != "unet" or parts.is_inpainting:
            raise UserError(
                "only images of Stable Diffusion 1, 2 and XL can be made as a host makes them",
                where=f"base.model: {parts.source}",
                do="Leave out --like.",
            )

    def denoise(
        self,
        parts: Components,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        negative: str,
        guidance: float,
        steps: int,
        size: tuple[int, int],
        should_stop: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Scaled latents ``[n, *latent_shape]``, fp32.

        Args:
            guidance: the CFG scale; 1 asks the prompt alone.
            steps: as the host counts them.
            size: height and width in pixels.
        """
        levels = Levels(alphas_of(parts.scheduler_config))
        sigmas, first, last = self.plan(levels, steps)
        guided = guidance != 1.0
        texts = [*prompts, *[negative] * len(prompts) * guided]
        parameter = next(parts.denoiser.parameters())
        conditioning = parts.family.encode(parts, texts).to(
            device=parameter.device, dtype=parameter.dtype
        )
        sizes = [SizeInfo(size, (0, 0), size)] * len(texts)

        def ask(latents: Tensor, sigma: float) -> Tensor:
            """``latents`` with noise of level ``sigma`` without it; the same shape, fp32."""
            if should_stop and should_stop():
                raise Stopped("stopped while making images")
            scale = (1 + sigma**2) ** 0.5
            noisy = (latents / scale).to(parameter.dtype)
            time = levels.time(sigma, rounded=self.host == "comfyui")
            times = torch.full((len(latents) * (1 + guided),), time, device=latents.device)
            both = torch.cat([noisy] * (1 + guided))
            output = parts.family.predict(parts, both, times, conditioning, sizes).float()
            if guided:
                wanted, unwanted = output.chunk(2)
                output = unwanted + guidance * (wanted - unwanted)
            if parts.prediction_type == "v_prediction":
                return latents / scale**2 - output * (sigma / scale)
            return latents - output * sigma

        sampler = _dpmpp_2m if self.sampler == "dpm++" else _euler
        return sampler(ask, self.noise(parts, seeds, size) * first, sigmas) * last

    def noise(self, parts: Components, seeds: Sequence[int], size: tuple[int, int]) -> Tensor:
        """The first latents ``[n, *latent_shape]``, standard normal, fp32 on the denoiser's
        device."""
        device = next(parts.denoiser.parameters()).device
        drawn = "cpu" if self.host == "comfyui" or self.cpu_noise else device.type
        if drawn == "mps":  # A1111 draws on the CPU there
            drawn = "cpu"
        place = device if drawn == device.type else torch.device(drawn)
        shape = parts.family.latent_shape(parts.configs, *size)
        each = [
            torch.randn(shape, generator=torch.Generator(place).manual_seed(seed), device=place)
            for seed in seeds
        ]
        return torch.stack(each).to(device)

    def plan(self, levels: Levels, steps: int) -> tuple[list[float], float, float]:
        """The noise levels from the first to the last, and by what the first noise and the last
        latents are multiplied."""
        if self.host == "a1111" and self.sampler == "ddim":
            # It works on latents of variance 1, and ends one step before no noise is left.
            times = [min(time + 1, levels.last) for time in range(0, 1000, 1000 // steps)]
            sigmas = [levels.sigma(float(time)) for time in reversed(times)]
            return sigmas, (1 + sigmas[0] ** 2) ** 0.5, (1 + sigmas[-1] ** 2) ** -0.5
        schedule = self.schedule or SCHEDULES[self.host][0]
        if schedule == "automatic":
            schedule = "karras" if self.sampler == "dpm++" else "uniform"
        sigmas = levels.spaced(schedule, steps)
        # ComfyUI adds the noise to an image of nothing where it begins with pure noise.
        whole = self.host == "comfyui" and sigmas[0] >= levels.highest * (1 - 1e-5)
        return sigmas, (1 + sigmas[0] ** 2) ** 0.5 if whole else sigmas[0], 1.0


class Levels:
    """The noise levels that a base was trained on.

    Args:
        alphas_bar: ``[T]``.
    """

    def __init__(self, alphas_bar: Tensor) -> None:
        alphas = alphas_bar.double().cpu()
        self.logarithms = ((1 - alphas) / alphas).sqrt().float().log()
        self.last = len(alphas) - 1
        self.lowest = float(self.logarithms[0].exp())
        self.highest = float(self.logarithms[-1].exp())

    def sigma(self, time: float) -> float:
        """The level of a time from 0 to T - 1, between two times on a logarithmic scale."""
        low = min(int(time), self.last - 1)
        share = time - low
        between = (1 - share) * self.logarithms[low] + share * self.logarithms[low + 1]
        return float(between.exp())

    def time(self, sigma: float, *, rounded: bool) -> float:
        """The time of a level: the inverse of :meth:`sigma`, or the nearest whole one."""
        logarithm = torch.tensor(sigma).log()
        if rounded:
            return float((self.logarithms - logarithm).abs().argmin())
        low = int(torch.searchsorted(self.logarithms, logarithm, right=True)) - 1
        low = min(max(low, 0), self.last - 1)
        below, above = self.logarithms[low], self.logarithms[low + 1]
        return low + min(max(float((logarithm - below) / (above - below)), 0.0), 1.0)

    def spaced(self, schedule: str, steps: int) -> list[float]:
        """The levels of so many steps, from the highest down to 0."""
        count = len(self.logarithms)
        if schedule in ("uniform", "normal"):
            times = torch.linspace(self.last, 0, steps).tolist()
        elif schedule == "sgm_uniform":
            times = torch.linspace(self.last, 0, steps + 1).tolist()[:-1]
        elif schedule == "simple":
            times = [self.last - int(step * count / steps) for step in range(steps)]
        elif schedule == "ddim_uniform":
            times = list(range(1, count, max(count // steps, 1)))[::-1]
        else:
            share = torch.linspace(0, 1, steps)
            if schedule == "karras":
                high, low = self.highest ** (1 / RHO), self.lowest ** (1 / RHO)
                return [*((high + share * (low - high)) ** RHO).tolist(), 0.0]
            ends = self.logarithms[-1], self.logarithms[0]
            return [*(ends[0] + share * (ends[1] - ends[0])).exp().tolist(), 0.0]
        return [*(self.sigma(float(time)) for time in times), 0.0]


Denoiser = Callable[[Tensor, float], Tensor]
"""Latents without their noise of a level, as the base and guidance see them."""


def _euler(ask: Denoiser, latents: Tensor, sigmas: Sequence[float]) -> Tensor:
    """Euler's method from the first level to the last."""
    for sigma, after in pairwise(sigmas):
        slope = (latents - ask(latents, sigma)) / sigma
        latents = latents + slope * (after - sigma)
    return latents


def _dpmpp_2m(ask: Denoiser, latents: Tensor, sigmas: Sequence[float]) -> Tensor:
    """DPM-Solver++ of the second order by what the step before said; of the first at both ends."""
    before: tuple[float, Tensor] | None = None
    for sigma, after in pairwise(sigmas):
        clean = ask(latents, sigma)
        straight = clean
        if before is not None and after > 0:
            level, said = before
            ratio = log(level / sigma) / log(sigma / after)
            straight = clean + (clean - said) / (2 * ratio)
        latents = (after / sigma) * latents + (1 - after / sigma) * straight
        before = (sigma, clean)
    return latents
