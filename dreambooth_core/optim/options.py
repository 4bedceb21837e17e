"""Options of the optimizer. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.fields import MAX_STEPS, advanced, option, section
from dreambooth_core.optim.table import OPTIMIZERS

SCHEDULES = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
)
ENDLESS = ("constant", "constant_with_warmup", "piecewise_constant")
"""Those that need not know when the run ends."""


@dataclass
class EmaOptions:
    """An exponential moving average of the trained weights, often better than the weights."""

    enabled: bool = option(
        False,
        label="EMA",
        help="""Keep an exponential moving average of the trained weights, and save it as the
        result.""",
    )
    decay: float = option(
        0.9999,
        label="EMA decay",
        help="Share of the old average that each step keeps. Short runs: 0.99 to 0.999.",
        between=(0.0, 1.0),
    )
    warmup: bool = advanced(
        True,
        label="EMA warm-up",
        help="Start with a smaller decay, so that the untrained weights are soon forgotten.",
    )
    every: int = advanced(
        1,
        label="EMA update every … steps",
        help="""Update the average only so often, with the decay adjusted to match. Saves time on a
        CPU.""",
        between=(1, 1000),
    )
    on_cpu: bool = advanced(
        False,
        label="EMA on the CPU",
        help="Keep the average in RAM instead of GPU memory.",
    )


@dataclass
class OptimOptions:
    """The optimizer, the learning rate and its schedule."""

    optimizer: str = option(
        "adamw",
        help="""AdamW; its 8-bit form takes a quarter of the memory; the paged ones spill into
        RAM; Prodigy and D-Adaptation find the learning rate themselves;
        the schedule-free ones need no learning rate schedule.""",
        choices=OPTIMIZERS,
    )
    learning_rate: float | None = option(
        None,
        help="""Empty: 1 for Prodigy and D-Adaptation, otherwise 1e-4 for adapters and 2e-6 for
        full fine-tuning.""",
        between=(0.0, 1000.0),
    )
    text_encoder_lr: float | None = option(
        None,
        label="Text encoder learning rate",
        help="Learning rate of the text encoders. Empty: the same.",
        between=(0.0, 1000.0),
        aliases=("text_learning_rate",),
    )
    embedding_lr: float | None = advanced(
        None,
        label="Embedding learning rate",
        help="Learning rate of learned tokens. Empty: 5e-3 with a fixed-rate optimizer.",
        between=(0.0, 1000.0),
        aliases=("embedding_learning_rate",),
    )
    scale_lr: bool = advanced(
        False,
        label="Scale learning rate",
        help="Multiply learning rates by batch size, gradient accumulation and processes.",
    )
    lr_scheduler: str = option(
        "constant",
        label="Learning rate scheduler",
        help="How the learning rate changes over the run.",
        choices=SCHEDULES,
        aliases=("schedule",),
    )
    lr_warmup_steps: int = option(
        0,
        label="Warm-up steps",
        help="Steps over which the learning rate rises from 0. Not with constant.",
        between=(0, MAX_STEPS),
        aliases=("warmup_steps",),
    )
    lr_num_cycles: float | None = advanced(
        None,
        label="Number of cycles",
        help="""cosine: number of waves (empty: 0.5, one fall to 0);
        cosine_with_restarts: number of restarts (empty: 1).""",
        between=(0.0, 1000.0),
        aliases=("cycles",),
    )
    lr_power: float = advanced(
        1.0,
        label="Polynomial power",
        help="Exponent of the polynomial schedule.",
        between=(0.0, 100.0),
        aliases=("power",),
    )
    final_learning_rate: float = advanced(
        1e-7,
        help="Where the polynomial schedule ends.",
        between=(0.0, 1.0),
    )
    step_rules: str = advanced(
        "",
        help="""piecewise_constant: "1:10,0.1:20,0.01" is factor 1 until step 10, 0.1 until step
        20, then 0.01.""",
    )
    beta1: float | None = advanced(
        None,
        label="Beta 1",
        help="Decay of the running mean of gradients. Empty: the optimizer's own (AdamW 0.9).",
        between=(0.0, 0.99999),
    )
    beta2: float | None = advanced(
        None,
        label="Beta 2",
        help="""Decay of the running mean of squared gradients. Empty: the optimizer's own (AdamW
        0.999).""",
        between=(0.0, 0.99999),
    )
    weight_decay: float = advanced(
        0.01,
        help="How strongly weights are pulled towards 0.",
        between=(0.0, 10.0),
    )
    text_weight_decay: float | None = advanced(
        None,
        label="Weight decay, text encoder",
        help="Weight decay of the text encoders. Empty: the same.",
        between=(0.0, 10.0),
    )
    epsilon: float | None = advanced(
        None,
        help="Small number against division by zero. Empty: the optimizer's own (AdamW 1e-8).",
        between=(0.0, 1.0),
    )
    optimizer_args: dict[str, str] = advanced(
        factory=dict,
        label="Optimizer arguments",
        help="Further arguments of the optimizer by its own names, such as d_coef: 2.",
        aliases=("arguments",),
    )
    max_grad_norm: float = advanced(
        1.0,
        label="Gradient clipping",
        help="Largest norm of all gradients together. 0 does not clip.",
        between=(0.0, 1e6),
    )
    fused_backward_pass: bool = advanced(
        False,
        help="""Each weight is updated as soon as its gradient is computed, and the gradient is
        freed: full fine-tuning without memory for all gradients at once.""",
        aliases=("fused_backward",),
    )
    stochastic_rounding: bool = advanced(
        False,
        help="""With weights in bf16: round each update up or down at random, so that small updates
        are not lost. A quarter to half of the memory for weights and gradients.""",
    )
    ema: EmaOptions = section(
        EmaOptions, label="EMA", help="An exponential moving average of the trained weights."
    )


ADAPTER_RATE, FULL_RATE, EMBEDDING_RATE = 1e-4, 2e-6, 5e-3


@dataclass(frozen=True)
class Rates:
    """Learning rates by what is trained."""

    unet: float
    text: float
    embedding: float


def rates(options: OptimOptions, *, full: bool = False, images: int = 1) -> Rates:
    """The learning rates that the options ask for, those left empty filled in.

    ``full`` is for full fine-tuning, where weights bear far smaller steps. With ``scale_lr``
    all are multiplied by the number of ``images`` that one step sees.
    """
    own = 1.0 if OPTIMIZERS[options.optimizer].finds_rate else None
    usual = own or (FULL_RATE if full else ADAPTER_RATE)
    unet = usual if options.learning_rate is None else options.learning_rate
    text = unet if options.text_encoder_lr is None else options.text_encoder_lr
    embedding = options.embedding_lr
    if embedding is None:
        embedding = EMBEDDING_RATE if own is None else unet
    factor = images if options.scale_lr else 1
    return Rates(unet * factor, text * factor, embedding * factor)
