"""What the model is asked to predict, and how one prediction turns into another.

All tensors ``[B, ...]``; ``alphas_bar`` ``[B]``. Salimans & Ho 2022 (arXiv:2202.00512) define
``v = sqrt(alpha_bar) * noise - sqrt(1 - alpha_bar) * x0``.
"""

from __future__ import annotations

from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.objective.schedule import per_sample

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def check(prediction_type: str) -> str:
    """Returns a known prediction type. Raises ``UserError`` for any other."""
    if prediction_type not in PREDICTION_TYPES:
        raise UserError(
            f"the prediction type {prediction_type!r} is not known",
            do=f"Known are {', '.join(PREDICTION_TYPES)}.",
        )
    return prediction_type


def target(prediction_type: str, latents: Tensor, noise: Tensor, alphas_bar: Tensor) -> Tensor:
    """The target for clean ``latents`` and the ``noise`` that was added to them."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    check(prediction_type)
    kept = per_sample(alphas_bar, latents)
    return kept.sqrt() * noise - (1.0 - kept).sqrt() * latents
