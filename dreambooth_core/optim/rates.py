"""Which learning rate each part of a model gets. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.optim.options import OptimOptions
from dreambooth_core.optim.table import OPTIMIZERS

ADAPTER_RATE = 1e-4
FULL_RATE = 2e-6
EMBEDDING_RATE = 5e-3


@dataclass(frozen=True)
class Rates:
    """Learning rates by what is trained."""

    unet: float
    text: float
    embedding: float


def rates(
    options: OptimOptions,
    *,
    full: bool = False,
    batch_size: int = 1,
    accumulation: int = 1,
    processes: int = 1,
) -> Rates:
    """The learning rates that the options ask for, those left empty filled in.

    ``full`` is for full fine-tuning, where weights bear far smaller steps. With ``scale_lr``
    all are multiplied by the number of images that one step sees.
    """
    own = OPTIMIZERS[options.optimizer].default_rate
    usual = own or (FULL_RATE if full else ADAPTER_RATE)
    unet = usual if options.learning_rate is None else options.learning_rate
    text = unet if options.text_encoder_lr is None else options.text_encoder_lr
    embedding = options.embedding_lr
    if embedding is None:
        embedding = EMBEDDING_RATE if own is None else unet
    factor = batch_size * accumulation * processes if options.scale_lr else 1
    return Rates(unet * factor, text * factor, embedding * factor)
