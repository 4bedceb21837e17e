"""Which timestep a training sample gets: a range, and a bias inside it.

Each bias is a quantile function: it turns a uniform number into a position in [0, 1) of the
range, so one keyed uniform number per sample is all the randomness there is.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from dreambooth_core.errors import UserError
from dreambooth_core.objective.options import ObjectiveOptions

_NORMAL = NormalDist()


def position(uniform: float, options: ObjectiveOptions) -> float:
    """Where in the range of timesteps a sample falls, in [0, 1).

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
    if bias == "later":
        return _two_parts(uniform, 1.0 - portion, 1.0, multiplier)
    raise UserError(f"timestep bias {bias!r} is not known", where="objective.timestep_bias")


def timestep(uniform: float, options: ObjectiveOptions, steps: int) -> int:
    """The timestep for a uniform number in [0, 1), within the options' inclusive range."""
    low, high = timestep_range(options, steps)
    return low + int(position(uniform, options) * (high - low + 1))


def timestep_range(options: ObjectiveOptions, steps: int) -> tuple[int, int]:
    """First and last timestep that are drawn, inclusive.

    Raises:
        UserError: ``min_timestep`` is above ``max_timestep``.
    """
    low, high = options.min_timestep, min(options.max_timestep, steps - 1)
    if low > high:
        raise UserError(
            f"the first timestep {low} is above the last, {high}",
            where="objective.min_timestep",
            do="Give a range such as 0 to 999.",
        )
    return low, high


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


_BELOW_ONE = math.nextafter(1.0, 0.0)
