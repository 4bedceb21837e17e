"""Where a rectified-flow family trains: its timesteps and their shift. Standard library only.

A shift by the factor f turns the share of noise s into ``f * s / (1 + (f - 1) * s)``: larger
images keep more of their content at the same s, so they need more noise to learn the same.
Families write the factor itself or its logarithm mu.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from dreambooth_core.errors import UserError
from dreambooth_core.objective.options import ObjectiveOptions


@dataclass(frozen=True)
class FlowDefaults:
    """What ``auto`` means for one rectified-flow family."""

    timesteps: str = "none"
    """A name in ``TIMESTEP_BIASES``; ``none`` is uniform."""
    mean: float = 0.0
    std: float = 1.0
    """Of ``logit_normal``."""
    shift: str = "none"
    """``none``, ``static`` or ``resolution``."""
    factor: float = 1.0
    """Of the static shift."""
    resolution_mu: Callable[[int], float] | None = None
    """mu from the number of the image's tokens, where the family's makers give a rule."""
    patch: int = 2
    """Latent cells along one side of a token, of latents as the objective gets them."""

    def resolved(self, options: ObjectiveOptions) -> ObjectiveOptions:
        """The options with the family's choices in place of every ``auto``.

        Raises:
            UserError: a shift by resolution without a rule for it; a shift factor that nothing
                uses.
        """
        if options.timestep_bias == "auto":
            options = replace(
                options,
                timestep_bias=self.timesteps,
                logit_mean=self.mean,
                logit_std=self.std,
            )
        if options.shift == "auto":
            given = options.shift_factor is not None
            options = replace(options, shift="static" if given else self.shift)
        if options.shift == "resolution" and self.resolution_mu is None:
            raise UserError(
                "the makers of this base give no rule for a shift by resolution",
                where="objective.shift",
                do="Choose static with a shift_factor, or auto.",
            )
        if options.shift_factor is not None and options.shift != "static":
            raise UserError(
                f"a shift factor does nothing with the shift {options.shift!r}",
                where="objective.shift_factor",
                do="Leave it empty, or set objective.shift to static.",
            )
        if options.shift == "static" and options.shift_factor is None:
            options = replace(options, shift_factor=self.factor)
        return options

    def tokens(self, height: int, width: int) -> int:
        """Tokens of an image whose latents have this height and width."""
        return (height // self.patch) * (width // self.patch)


def shifted(s: float, factor: float) -> float:
    """The share of noise ``s`` in [0, 1] shifted by ``factor``."""
    return factor * s / (1.0 + (factor - 1.0) * s)


def linear_mu(
    base: float = 0.5, largest: float = 1.15, base_tokens: int = 256, most_tokens: int = 4096
) -> Callable[[int], float]:
    """mu that grows with the number of tokens, from ``base`` to ``largest``: Flux's rule."""
    slope = (largest - base) / (most_tokens - base_tokens)
    return lambda tokens: base + slope * (tokens - base_tokens)


def root_mu(base_tokens: float) -> Callable[[int], float]:
    """mu of a factor that is the root of the number of tokens by ``base_tokens``.

    Esser et al. 2024 (arXiv:2403.03206), equation 23; Ideogram 4 has the same.
    """
    return lambda tokens: 0.5 * math.log(tokens / base_tokens)
