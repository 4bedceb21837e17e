"""Diffusion-DPO: of two images of one prompt, make the good one likelier than the bad one.

Wallace et al. 2023 (arXiv:2311.12908), equation 14. Both images get the same noise at the same
timestep. What counts is by how much the error of each has changed against a reference, the model
as it was when training began, which also keeps it from straying further than it must.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def preference(errors: Tensor, reference: Tensor, beta: float) -> Tensor:
    """The loss of each pair, ``[P]``, fp32; log 2 where the model is its reference.

    ``errors`` and ``reference`` ``[2, P]``: mean squared errors of the good images and of the bad
    ones, of the trained model and of the reference, with whatever weight the timestep has.
    ``beta`` is the paper's beta T, halved as its authors' training does, since errors are means
    over the elements and not sums.
    """
    changed = errors - reference
    return -F.logsigmoid(-0.5 * beta * (changed[0] - changed[1]))
