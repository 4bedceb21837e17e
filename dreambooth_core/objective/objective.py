"""``Objective``: everything between clean latents and a loss, but the model.

It owns what the model is asked to predict, so the training loop never asks for it. What follows
the class are the functions that it is made of: noise, timesteps and losses.

Noise is drawn for one sample by its own generator, ``[C, H, W]``, fp32, on the CPU: the numbers of
a CPU and a GPU generator differ, and a result should depend on neither the device nor the batch
that a sample is in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from dreambooth_core.devices import send
from dreambooth_core.errors import UserError
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.randomness import Key, generator, uniform

_NORMAL = NormalDist()
_BELOW_ONE = math.nextafter(1.0, 0.0)


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

    def part(self, which: slice) -> NoisySample:
        """Some of its samples."""
        return NoisySample(*(getattr(self, each.name)[which] for each in fields(self)))


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
        each = elementwise(options.loss, prediction, sample.target, sample.thresholds)
        means = mean_per_sample(each, mask)
        return means * sample.weights

    def _noise(self, shape: torch.Size, key: tuple[Key, ...]) -> Tensor:
        options = self.options
        noise = gaussian(shape, generator(*key, "noise"))
        if options.multires_noise_discount > 0:
            noise = pyramid(
                noise,
                options.multires_noise_discount,
                options.multires_noise_iterations,
                generator(*key, "pyramid"),
            )
        if options.noise_offset > 0:
            noise = offset(noise, options.noise_offset, generator(*key, "offset"))
        return noise

    def _shown(self, asked: Tensor, keys: Sequence[tuple[Key, ...]]) -> Tensor | None:
        """The perturbed noise, or ``None`` where the model is shown what it is asked for."""
        strength = self.options.ip_noise_gamma
        if strength <= 0:
            return None
        pairs = zip(asked, keys, strict=True)
        return torch.stack(
            [perturbed(n, strength, generator(*k, "perturbation")) for n, k in pairs]
        )


def gaussian(shape: torch.Size | tuple[int, ...], generator: Generator) -> Tensor:
    """Unit Gaussian noise of ``shape``."""
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def offset(noise: Tensor, strength: float, generator: Generator) -> Tensor:
    """``noise`` plus one Gaussian number per channel, times ``strength``.

    Guttenberg 2023, "Diffusion with Offset Noise": with independent noise alone a model never
    learns to change an image's mean.
    """
    shift = gaussian((*noise.shape[:-2], 1, 1), generator)
    return noise + strength * shift


def pyramid(noise: Tensor, discount: float, levels: int, generator: Generator) -> Tensor:
    """``noise`` plus ever coarser noise, brought back to unit variance.

    Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training": level ``i`` has the
    size divided by ``r**i`` with ``r`` drawn from [2, 4), is stretched to the full size, and
    counts ``discount**i``. Ends where a side has shrunk to one.
    """
    height, width = noise.shape[-2:]
    total = noise.clone()
    for level in range(1, levels + 1):
        factor = float(torch.rand((), generator=generator)) * 2.0 + 2.0
        size = (max(1, int(height / factor**level)), max(1, int(width / factor**level)))
        coarse = gaussian((*noise.shape[:-2], *size), generator)
        stretched = F.interpolate(
            coarse[None], size=(height, width), mode="bilinear", align_corners=False
        )[0]
        total += stretched * discount**level
        if min(size) == 1:
            break
    return total / total.std()


def perturbed(noise: Tensor, strength: float, generator: Generator) -> Tensor:
    """The noise that the model is shown, where ``noise`` is what it is asked for.

    Ning et al. 2023, "Input Perturbation Reduces Exposure Bias in Diffusion Models"
    (arXiv:2301.11706).
    """
    return noise + strength * gaussian(noise.shape, generator)


def position(uniform: float, options: ObjectiveOptions) -> float:
    """Where in the range of timesteps a sample falls, in [0, 1).

    Each bias is a quantile function: it turns a uniform number into a position, so one keyed
    uniform number per sample is all the randomness there is.

    - ``earlier`` / ``later``: one end of the range, ``timestep_bias_portion`` wide, is drawn
      ``timestep_bias_multiplier`` times as often as the rest (as in diffusers' SDXL script).
    - ``cubic``: ``1 - u**3``, strongly towards noise.
    - ``logit_normal``, ``mode``, ``cosmap``: Esser et al. 2024 (arXiv:2403.03206), section 3.1.
      ``sigmoid`` is ``logit_normal`` with mean 0 and the width ``sigmoid_scale``.
    """
    bias = options.timestep_bias
    if bias in ("auto", "none"):
        return uniform
    if bias == "cubic":
        return min(1.0 - uniform**3, _BELOW_ONE)
    if bias == "logit_normal":
        return _logit_normal(uniform, options.logit_mean, options.logit_std)
    if bias == "sigmoid":
        return _logit_normal(uniform, 0.0, options.sigmoid_scale)
    if bias == "mode":
        bend = math.cos(math.pi / 2 * uniform) ** 2 - 1.0 + uniform
        return min(max(1.0 - uniform - options.mode_scale * bend, 0.0), _BELOW_ONE)
    if bias == "cosmap":
        return min(1.0 - 1.0 / (math.tan(math.pi / 2 * uniform) + 1.0), _BELOW_ONE)
    portion, multiplier = options.timestep_bias_portion, options.timestep_bias_multiplier
    if bias == "earlier":
        return _two_parts(uniform, portion, multiplier, 1.0)
    return _two_parts(uniform, 1.0 - portion, 1.0, multiplier)


def _logit_normal(uniform: float, mean: float, std: float) -> float:
    """Quantile of the sigmoid of a Gaussian."""
    inside = min(max(uniform, 1e-12), _BELOW_ONE)
    gauss = mean + std * _NORMAL.inv_cdf(inside)
    return min(1.0 / (1.0 + math.exp(-gauss)), _BELOW_ONE)


def _two_parts(uniform: float, border: float, left: float, right: float) -> float:
    """Quantile of a density that is ``left`` below ``border`` and ``right`` above it."""
    total = left * border + right * (1.0 - border)
    mass = uniform * total
    if mass < left * border or right == 0.0:
        return min(mass / left, _BELOW_ONE)
    return min(border + (mass - left * border) / right, _BELOW_ONE)


def elementwise(kind: str, prediction: Tensor, target: Tensor, threshold: Tensor) -> Tensor:
    """The loss of each element, fp32. ``prediction`` and ``target`` ``[B, ...]``.

    ``threshold`` ``[B]`` is used by ``huber``, the pseudo-Huber loss
    ``2c * (sqrt(d² + c²) - c)`` of Khrapov et al. 2024 (arXiv:2403.16728), which is d² for
    small and 2c|d| for large errors, and by ``smooth_l1``, ``d² / 2c`` below c and
    ``|d| - c/2`` above.
    """
    difference = prediction.float() - target.float()
    if kind in ("l2", "dpo"):  # pairs are compared by their squared errors
        return difference.square()
    if kind == "l1":
        return difference.abs()
    c = per_sample(threshold, difference)
    if kind == "huber":
        # The same as in the paper, without the difference of two nearly equal numbers.
        square = difference.square()
        return 2.0 * c * square / ((square + c.square()).sqrt() + c)
    size = difference.abs()
    return torch.where(size < c, difference.square() / (2.0 * c), size - c / 2.0)


def huber_threshold(
    options: ObjectiveOptions, timesteps: Tensor, alphas_bar: Tensor, steps: int
) -> Tensor:
    """The threshold of each sample, ``[B]``, fp32. Khrapov et al. 2024.

    ``exponential``: ``c ** (t / steps)``; ``snr``: ``(1 - c) / (1 + sigma)² + c`` with
    ``sigma² = 1 / SNR``. Both are 1 without noise and tend to ``c``.
    """
    c = options.huber_c
    if options.huber_schedule == "constant":
        return torch.full_like(alphas_bar, c, dtype=torch.float32)
    if options.huber_schedule == "exponential":
        return torch.exp(timesteps.float() * (math.log(c) / steps))
    sigma = ((1.0 - alphas_bar.float()) / alphas_bar.float()).sqrt()
    return (1.0 - c) / (1.0 + sigma).square() + c


def mean_per_sample(losses: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over all but the first dimension, ``[B, C, H, W]`` to ``[B]``.

    ``mask`` ``[B, 1, h, w]`` in [0, 1], of the image's or the latents' size, is averaged down
    to the latents' size and weights the mean, so that a small subject counts as much as a large
    one. A sample whose weights are all 0 has loss 0.
    """
    if mask is None:
        return losses.flatten(1).mean(dim=1)
    weights = mask.to(device=losses.device, dtype=losses.dtype)
    if weights.shape[-2:] != losses.shape[-2:]:
        size = (int(losses.shape[-2]), int(losses.shape[-1]))
        weights = F.adaptive_avg_pool2d(weights, size)
    weights = weights.expand_as(losses).flatten(1)
    total = weights.sum(dim=1)
    weighted = (losses.flatten(1) * weights).sum(dim=1)
    return torch.where(total > 0, weighted / total.clamp(min=1e-12), torch.zeros_like(total))


def combine(
    losses: Tensor, is_class: Tensor, prior_weight: float, counts: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """DreamBooth's loss in two parts, the subject, and its class so that it survives (Ruiz et al.
    2022, arXiv:2208.12242, equation 2): the mean over instance images plus ``prior_weight`` times
    the mean over class images.

    ``losses`` ``[B]``, ``is_class`` ``[B]`` bool. Each kind has a mean of its own, so the order
    of the batch and the share of each kind do not matter.

    ``counts`` is the number of instance and class images of the *whole* batch: the totals of all
    its parts (accumulation steps, processes) then add up to the total of the whole batch, however
    the kinds are spread.

    Returns:
        The total, and without gradient the mean of the instance and of the class images, before
        ``prior_weight``; 0 where there were none. Scalars on the losses' device.
    """
    of_class = is_class.to(device=losses.device, dtype=losses.dtype)
    of_instance = 1.0 - of_class
    instance = (losses * of_instance).sum() / max(counts[0], 1.0)
    prior = (losses * of_class).sum() / max(counts[1], 1.0)
    return instance + prior_weight * prior, instance.detach(), prior.detach()


def preference(errors: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Diffusion-DPO: of two images of one prompt, make the good one likelier than the bad one. The
    loss of each pair, ``[P]``, fp32; log 2 where the model is its reference.

    Wallace et al. 2023 (arXiv:2311.12908), equation 14. Both images get the same noise at the same
    timestep. What counts is by how much the error of each has changed against a reference, the
    model as it was when training began, which also keeps it from straying further than it must.

    ``errors`` and ``reference`` ``[2, P]``: mean squared errors of the good images and of the bad
    ones, of the trained model and of the reference, with whatever weight the timestep has.
    ``beta`` is the paper's beta T, halved as its authors' training does, since errors are means
    over the elements and not sums.
    """
    changed = errors - reference
    return -F.logsigmoid(-0.5 * beta * (changed[0] - changed[1]))


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """``values`` ``[B]`` with as many trailing dimensions of size 1 as ``like`` has."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def unknown_weighting(weighting: str, kind: str, known: tuple[str, ...]) -> UserError:
    """The refusal of a weighting that bases of a kind do not have."""
    return UserError(
        f"weighting {weighting!r} is not known for {kind} bases",
        where="objective.weighting",
        do=f"Known are {', '.join(known)}.",
    )
