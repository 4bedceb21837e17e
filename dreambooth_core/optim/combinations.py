"""What cannot be combined, and why. Standard library only.

The table is the one source: ``refuse`` checks it before a run, and ``docs/combinations.md`` is
written from it (``python -m dreambooth_core.optim.combinations docs/combinations.md``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import UserError
from dreambooth_core.optim.table import OPTIMIZERS


@dataclass(frozen=True)
class Setting:
    """What of a configuration matters here. The trainer fills it in."""

    optimizer: str = "adamw"
    schedule: str = "constant"
    warmup_steps: int = 0
    max_grad_norm: float = 1.0
    fused_backward: bool = False
    stochastic_rounding: bool = False
    ema: bool = False
    learning_rates: tuple[float, ...] = ()
    """The learning rates of the groups, those of nothing trained left out."""
    accumulation: int = 1
    processes: int = 1
    precision: str = "no"
    """``no`` (fp32), ``fp16`` (with scaler), ``bf16``, or ``full_bf16`` (weights in bf16)."""
    quantized: str = "no"
    """``no``, ``nf4`` or ``int8``: the base's frozen weights."""
    trains_base: bool = False
    """Whether weights of the base itself are trained, as in full fine-tuning."""
    compile: bool = False
    device: str = "cuda"
    """``cuda``, ``cpu``, ``mps``, ``xpu``."""


@dataclass(frozen=True)
class Rule:
    """Two things that exclude each other."""

    first: str
    second: str
    reason: str
    do: str
    where: str
    """The field that the error points at."""
    broken: Callable[[Setting], bool]


def _finds_rate(s: Setting) -> bool:
    return OPTIMIZERS[s.optimizer].finds_rate


def _averages(s: Setting) -> bool:
    return OPTIMIZERS[s.optimizer].averages


def _shares(s: Setting) -> bool:
    return not OPTIMIZERS[s.optimizer].per_parameter


RULES: tuple[Rule, ...] = (
    Rule(
        "fused_backward",
        "gradient accumulation",
        "the weights would step after each part of the batch",
        "Set run.accumulation to 1, or switch fused_backward off.",
        "optim.fused_backward",
        lambda s: s.fused_backward and s.accumulation > 1,
    ),
    Rule(
        "fused_backward",
        "gradient clipping by norm",
        "the norm of all gradients is known only when all are there",
        "Set optim.max_grad_norm to 0, or switch fused_backward off.",
        "optim.fused_backward",
        lambda s: s.fused_backward and s.max_grad_norm > 0,
    ),
    Rule(
        "fused_backward",
        "several processes",
        "the weights would step before the processes have added up their gradients",
        "Train in one process, or switch fused_backward off.",
        "optim.fused_backward",
        lambda s: s.fused_backward and s.processes > 1,
    ),
    Rule(
        "fused_backward",
        "fp16",
        "the loss scaler must see all gradients before any weight may step",
        "Use bf16, or switch fused_backward off.",
        "optim.fused_backward",
        lambda s: s.fused_backward and s.precision == "fp16",
    ),
    Rule(
        "fused_backward",
        "Prodigy, D-Adaptation and schedule-free optimizers",
        "their steps depend on all weights together",
        "Choose AdamW, Adafactor, Lion or SGD, or switch fused_backward off.",
        "optim.fused_backward",
        lambda s: s.fused_backward and _shares(s),
    ),
    Rule(
        "fused_backward",
        "torch.compile",
        "a compiled backward pass does not run the hooks that take the steps",
        "Switch one of the two off.",
        "optim.fused_backward",
        lambda s: s.fused_backward and s.compile,
    ),
    Rule(
        "stochastic_rounding",
        "weights that are not in bf16",
        "there is nothing to round",
        "Set run.mixed_precision to full_bf16, or switch stochastic_rounding off.",
        "optim.stochastic_rounding",
        lambda s: s.stochastic_rounding and s.precision != "full_bf16",
    ),
    Rule(
        "stochastic_rounding",
        "schedule-free optimizers",
        "they keep their averages in the weights' own precision",
        "Choose another optimizer, or switch stochastic_rounding off.",
        "optim.stochastic_rounding",
        lambda s: s.stochastic_rounding and _averages(s),
    ),
    Rule(
        "schedule-free optimizers",
        "a learning rate schedule",
        "their averaging takes its place; warm-up alone is fine",
        "Set optim.schedule to constant or constant_with_warmup.",
        "optim.schedule",
        lambda s: _averages(s) and s.schedule not in ("constant", "constant_with_warmup"),
    ),
    Rule(
        "schedule-free optimizers",
        "EMA",
        "they average the weights themselves",
        "Switch optim.ema.enabled off.",
        "optim.ema.enabled",
        lambda s: _averages(s) and s.ema,
    ),
    Rule(
        "Prodigy and D-Adaptation",
        "a learning rate for each part",
        "they find one rate for all weights",
        "Leave the learning rates of text encoder and embedding empty.",
        "optim.text_learning_rate",
        lambda s: _finds_rate(s) and len(set(s.learning_rates)) > 1,
    ),
    Rule(
        "Prodigy and D-Adaptation",
        "a small learning rate",
        "it is a factor of the rate that they find, so with less than 0.01 nothing would be "
        "learned",
        "Leave optim.learning_rate empty, or set it to 1.",
        "optim.learning_rate",
        lambda s: _finds_rate(s) and any(0 < rate < 0.01 for rate in s.learning_rates),
    ),
    Rule(
        "Prodigy and D-Adaptation",
        "fp16",
        "a step that the loss scaler skips would still be counted into the rate",
        "Use bf16 or fp32.",
        "optim.optimizer",
        lambda s: _finds_rate(s) and s.precision == "fp16",
    ),
    Rule(
        "schedule constant",
        "warm-up",
        "constant has none, as in diffusers",
        "Set optim.schedule to constant_with_warmup, or optim.warmup_steps to 0.",
        "optim.warmup_steps",
        lambda s: s.schedule == "constant" and s.warmup_steps > 0 and not _averages(s),
    ),
    Rule(
        "schedule piecewise_constant",
        "warm-up",
        "its rules say all; write the warm-up into them",
        "Set optim.warmup_steps to 0.",
        "optim.warmup_steps",
        lambda s: s.schedule == "piecewise_constant" and s.warmup_steps > 0 and not _averages(s),
    ),
    Rule(
        "a 4-bit or 8-bit base",
        "full fine-tuning",
        "quantised weights have no gradient",
        "Train an adapter, or set memory.quantize to no.",
        "memory.quantize",
        lambda s: s.quantized != "no" and s.trains_base,
    ),
    Rule(
        "full_bf16",
        "AdamW and others in bf16 without stochastic rounding, in full fine-tuning",
        "steps smaller than 1/256 of a weight would be lost",
        "Switch optim.stochastic_rounding on, or use bf16 (mixed).",
        "optim.stochastic_rounding",
        lambda s: s.precision == "full_bf16" and s.trains_base and not s.stochastic_rounding,
    ),
    Rule(
        "fp16",
        "the CPU",
        "fp16 needs a GPU",
        "Use bf16 or fp32.",
        "run.mixed_precision",
        lambda s: s.precision == "fp16" and s.device == "cpu",
    ),
    Rule(
        "8-bit and paged optimizers, Lion",
        "Apple's GPUs",
        "bitsandbytes has no kernels for them",
        "Choose adamw, adafactor, prodigy or a schedule-free optimizer.",
        "optim.optimizer",
        lambda s: OPTIMIZERS[s.optimizer].package == "bitsandbytes" and s.device == "mps",
    ),
)


def refuse(setting: Setting) -> list[UserError]:
    """One error for each rule that the setting breaks, in the table's order."""
    return [
        UserError(
            f"{rule.first} cannot be combined with {rule.second}: {rule.reason}",
            where=rule.where,
            do=rule.do,
        )
        for rule in RULES
        if rule.broken(setting)
    ]


def as_markdown() -> str:
    """The table as a page."""
    lines = [
        "# What cannot be combined",
        "",
        "Each pair is refused by name before a run starts.",
        "",
        "| this | with | why | instead |",
        "| --- | --- | --- | --- |",
        *(f"| {r.first} | {r.second} | {r.reason} | {r.do} |" for r in RULES),
        "",
        "<!-- Written by python -m dreambooth_core.optim.combinations docs/combinations.md -->",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Writes the page to the path that is given."""
    Path(argv[0]).write_text(as_markdown(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
