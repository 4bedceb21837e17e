"""What cannot be combined, and why. Standard library only.

The table is the one source: ``refuse`` checks it before a run, and ``docs/combinations.md`` is
written from it (``python -m dreambooth_core.options.combinations docs/combinations.md``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.errors import UserError
from dreambooth_core.methods.table import METHODS, MethodSpec
from dreambooth_core.optim.options import ENDLESS, OptimOptions, rates
from dreambooth_core.optim.schedules import Schedule
from dreambooth_core.optim.table import OPTIMIZERS, OptimizerSpec
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.memory import FASTEST, ON


@dataclass(frozen=True)
class Asked:
    """A configuration, and where it is to run."""

    config: TrainConfig
    device: str = ""
    """``cuda``, ``cpu``, ``mps``, ``xpu``; empty where that is not known yet."""
    processes: int = 1

    @property
    def optim(self) -> OptimOptions:
        return self.config.optim

    @property
    def method(self) -> MethodSpec:
        """All that is known of it."""
        return METHODS[self.config.method.kind]

    @property
    def precision(self) -> str:
        return self.config.run.mixed_precision

    @property
    def optimizer(self) -> OptimizerSpec:
        """All that is known of it."""
        return OPTIMIZERS[self.optim.optimizer]

    @property
    def learning_rates(self) -> set[float]:
        """Those of what is trained."""
        run, method = self.config.run, self.config.method
        images = run.batch_size * run.gradient_accumulation_steps * self.processes
        found = rates(self.optim, full=self.method.trains_base, images=images)
        trained = (
            (found.unet, self.trains_weights and method.train_denoiser),
            (found.text, self.trains_weights and method.train_text_encoder),
            (found.embedding, self.method.learns_token),
        )
        return {rate for rate, wanted in trained if wanted}

    @property
    def streams(self) -> bool:
        """Whether blocks of the denoiser lie in RAM."""
        return self.config.memory.share > 0

    @property
    def trains_weights(self) -> bool:
        """Whether anything but a learned token is trained."""
        return self.method.is_adapter or self.method.trains_base


TABLE = """\
fused_backward_pass @ optim.fused_backward_pass
  gradient accumulation: the weights would step after each part of the batch
    Set run.gradient_accumulation_steps to 1, or switch optim.fused_backward_pass off.
  gradient clipping by norm: the norm of all gradients is known only when all are there
    Set optim.max_grad_norm to 0, or switch optim.fused_backward_pass off.
  several processes: the weights would step before the processes have added up their gradients
    Train in one process, or switch optim.fused_backward_pass off.
  fp16: the loss scaler must see all gradients before any weight may step
    Use bf16, or switch optim.fused_backward_pass off.
  Prodigy, D-Adaptation and schedule-free optimizers: their steps depend on all weights together
    Choose AdamW, Adafactor, Lion or SGD, or switch optim.fused_backward_pass off.
  torch.compile: a compiled backward pass does not run the hooks that take the steps
    Switch one of the two off.
the fastest attention @ memory.attention
  torch.compile: each kernel would be compiled for its trial
    Set memory.attention to auto.
  fused_backward_pass: trials would step the weights
    Set memory.attention to auto.
  several processes: each would choose for itself
    Set memory.attention to auto.
CUDA graphs @ memory.cuda_graphs
  torch.compile off: what is recorded are compiled blocks
    Switch memory.compile on, or memory.cuda_graphs off.
  devices that are not NVIDIA's: they are CUDA's
    Switch memory.cuda_graphs off.
  buckets: what is recorded has one size
    Set data.crop to center or random, or switch memory.cuda_graphs off.
  gradient checkpointing: blocks are computed a second time, where the first recording is still in use
    Switch one of the two off.
  gradient accumulation: the next pass would write over gradients that are being summed
    Set run.gradient_accumulation_steps to 1, or switch memory.cuda_graphs off.
  objective.loss dpo: the adapter as it was is asked in between, from elsewhere in the memory
    Choose another objective.loss, or switch memory.cuda_graphs off.
  several processes: gradients travel while they appear
    Train in one process, or switch memory.cuda_graphs off.
channels_last @ memory.channels_last
  memory.stream: weights that come and go lie as they did when they were read
    Set memory.channels_last to auto, or memory.stream to off.
  run.sharding: a piece of a weight has no channels
    Set memory.channels_last to auto, or run.sharding to no.
stochastic_rounding @ optim.stochastic_rounding
  weights that are not in bf16: there is nothing to round
    Set run.mixed_precision to full_bf16, or switch stochastic_rounding off.
  schedule-free optimizers: they keep their averages in the weights' own precision
    Choose another optimizer, or switch stochastic_rounding off.
schedule-free optimizers @ optim.lr_scheduler
  a learning rate schedule: their averaging takes its place; warm-up alone is fine
    Set optim.lr_scheduler to constant or constant_with_warmup.
schedule-free optimizers @ optim.ema.enabled
  EMA: they average the weights themselves
    Switch optim.ema.enabled off.
Prodigy and D-Adaptation @ optim.text_encoder_lr
  a learning rate for each part: they find one rate for all weights
    Leave the learning rates of text encoder and embedding empty.
Prodigy and D-Adaptation @ optim.learning_rate
  a small learning rate: it is a factor of the rate that they find, so with less than 0.01 nothing would be learned
    Leave optim.learning_rate empty, or set it to 1.
Prodigy and D-Adaptation @ optim.optimizer
  fp16: a step that the loss scaler skips would still be counted into the rate
    Use bf16 or fp32.
schedule constant @ optim.lr_warmup_steps
  warm-up: constant has none, as in diffusers
    Set optim.lr_scheduler to constant_with_warmup, or optim.lr_warmup_steps to 0.
schedule piecewise_constant @ optim.lr_warmup_steps
  warm-up: its rules say all; write the warm-up into them
    Set optim.lr_warmup_steps to 0.
a 4-bit or 8-bit base @ memory.quantize
  full fine-tuning: quantised weights have no gradient
    Train an adapter, or set memory.quantize to no.
memory.stream @ memory.stream
  full fine-tuning without fused_backward_pass: all gradients would be on the device at once, and every weight for its step
    Switch optim.fused_backward_pass on, or set memory.stream to off.
  torch.compile: compiled blocks do not wait for weights that are on their way
    Switch one of the two off.
  several processes: they would copy the whole model to each device to compare it
    Train in one process, or set memory.stream to off.
  Apple's GPUs: their memory is the computer's own
    Set memory.stream to off.
full_bf16 @ optim.stochastic_rounding
  AdamW and others in bf16 without stochastic rounding, in full fine-tuning: steps smaller than 1/256 of a weight would be lost
    Switch optim.stochastic_rounding on, or use bf16 (mixed).
method.train_denoiser off @ method.train_denoiser
  method.train_text_encoder off: nothing would be trained
    Switch one of the two on.
prior.source prediction @ prior.source
  textual inversion: the model stays as it is, so the class cannot change
    Switch prior.enabled off.
objective.loss dpo @ objective.loss
  no marked images: it learns from pairs of a good and a bad image
    Name the marks.json of generated images in marks.file, or choose another objective.loss.
  methods that train no adapter: what it compares with, the model as it was, would be a second model
    Choose lora, or bake what the full fine-tune learned and train an adapter on it.
objective.loss dpo @ method.dropout
  dropout: the adapter would differ from what it was by what is dropped
    Set method.dropout and method.text_dropout to 0.
marks.images own or none @ marks.images
  other losses than dpo: nothing would be learned from the marks
    Set marks.images to joined, or objective.loss to dpo.
method.init_from @ method.init_from
  textual inversion: it learns a word, and leaves the model as it is
    Choose pivotal, or leave method.init_from empty.
run.stop_when @ run.stop_when
  no saves on the way: a run is measured when it is saved, and there would be nothing to compare
    Set save.every_steps or save.every_epochs, or leave run.stop_when empty.
run.steps and run.epochs empty @ optim.lr_scheduler
  schedules that end with the run: the run ends when it gets no better, and nobody knows when that is
    Set optim.lr_scheduler to constant or constant_with_warmup, or give run.steps.
method.training_adapter @ method.training_adapter
  methods that train no adapter: it helps to train another adapter, and is left out of that one
    Choose lora, or leave method.training_adapter empty.
save.arrangement @ save.arrangement
  a method that it has no place for: code written for such folders would not find the result
    Leave save.arrangement at run.
save.best @ save.best
  results laid out for other scripts: such folders have no place for a best one
    Leave save.arrangement at run.
save.layout @ save.layout
  a method that it has no place for: whatever reads such files would not know the result
    Leave save.layout at host.
run.sharding @ run.sharding
  a 4-bit or 8-bit base: packed weights cannot be cut into pieces
    Set memory.quantize to no, or run.sharding to no.
  torch.compile: the network is compiled whole, and is never whole
    Switch one of the two off.
  fp16: the loss scaler looks at one process's piece alone
    Use bf16 or fp32.
  stochastic_rounding and fused_backward_pass: they step weights one by one and whole
    Switch them off.
  optimizers other than adamw, adam and sgd: they look at a weight as a whole, or have kernels that know no pieces
    Choose adamw.
  prior.source prediction: a pass gathers pieces from all processes, and not each of them has class images in it
    Set prior.source to images.
  objective.loss dpo: the adapter as it was would have to be in pieces too
    Choose another objective.loss.
  save.best_by images: the first process alone draws them, and has one piece of the network
    Set save.best_by to loss.
  method.training_adapter: it lies beside layers that are whole
    Leave method.training_adapter empty.
  EMA in RAM: each process averages its own pieces where they are
    Switch optim.ema.on_cpu off; run.sharding=offload keeps all pieces in RAM.
fp16 @ run.mixed_precision
  the CPU: fp16 needs a GPU
    Use bf16 or fp32.
class images in fp16 @ prior.precision
  the CPU: fp16 needs a GPU
    Set prior.precision to auto, bf16 or fp32.
a 4-bit base @ memory.quantize
  Apple's GPUs: bitsandbytes has no kernels for them
    Set memory.quantize to int8.
a base in fp8 @ memory.quantize
  Apple's GPUs: they have no numbers of that kind
    Set memory.quantize to int8.
8-bit and paged optimizers, Lion @ optim.optimizer
  Apple's GPUs: bitsandbytes has no kernels for them
    Choose adamw, adafactor, prodigy or a schedule-free optimizer.
"""  # noqa: E501
"""What excludes what: a thing and the field that an error points at, below it the things that it
cannot be combined with, each with the reason, and what to do instead."""

HOLDS: dict[str, Callable[[Asked], bool]] = {
    "fused_backward_pass": lambda s: s.optim.fused_backward_pass,
    "gradient accumulation": lambda s: s.config.run.gradient_accumulation_steps > 1,
    "gradient clipping by norm": lambda s: s.optim.max_grad_norm > 0,
    "several processes": lambda s: s.processes > 1,
    "fp16": lambda s: s.precision == "fp16",
    "Prodigy, D-Adaptation and schedule-free optimizers": lambda s: not s.optimizer.per_parameter,
    "torch.compile": lambda s: s.config.memory.compile,
    "torch.compile off": lambda s: not s.config.memory.compile,
    "the fastest attention": lambda s: s.config.memory.attention == FASTEST,
    "CUDA graphs": lambda s: s.config.memory.cuda_graphs,
    "devices that are not NVIDIA's": lambda s: s.device not in ("", "cuda"),
    "buckets": lambda s: s.config.data.crop == "bucket",
    "gradient checkpointing": lambda s: s.config.memory.gradient_checkpointing,
    "objective.loss dpo": lambda s: s.config.prefers,
    "channels_last": lambda s: s.config.memory.channels_last == ON,
    "memory.stream": lambda s: s.streams,
    "run.sharding": lambda s: s.config.run.sharding != "no",
    "stochastic_rounding": lambda s: s.optim.stochastic_rounding,
    "weights that are not in bf16": lambda s: s.precision != "full_bf16",
    "schedule-free optimizers": lambda s: s.optimizer.averages,
    "a learning rate schedule": lambda s: (
        s.optim.lr_scheduler not in ("constant", "constant_with_warmup")
    ),
    "EMA": lambda s: s.optim.ema.enabled,
    "Prodigy and D-Adaptation": lambda s: s.optimizer.finds_rate,
    "a learning rate for each part": lambda s: len(s.learning_rates) > 1,
    "a small learning rate": lambda s: any(0 < rate < 0.01 for rate in s.learning_rates),
    "schedule constant": lambda s: s.optim.lr_scheduler == "constant",
    "schedule piecewise_constant": lambda s: s.optim.lr_scheduler == "piecewise_constant",
    "warm-up": lambda s: s.optim.lr_warmup_steps > 0 and not s.optimizer.averages,
    "a 4-bit or 8-bit base": lambda s: s.config.memory.quantize != "no",
    "full fine-tuning": lambda s: s.method.trains_base,
    "full fine-tuning without fused_backward_pass": lambda s: (
        s.method.trains_base and s.config.method.train_denoiser and not s.optim.fused_backward_pass
    ),
    "Apple's GPUs": lambda s: s.device == "mps",
    "full_bf16": lambda s: s.precision == "full_bf16",
    "AdamW and others in bf16 without stochastic rounding, in full fine-tuning": lambda s: (
        s.method.trains_base and not s.optim.stochastic_rounding
    ),
    "method.train_denoiser off": lambda s: not s.config.method.train_denoiser,
    "method.train_text_encoder off": lambda s: (
        not (s.config.method.train_text_encoder or s.method.learns_token)
    ),
    "prior.source prediction": lambda s: s.config.prior.predicts,
    "textual inversion": lambda s: not s.trains_weights,
    "no marked images": lambda s: not s.config.marks.file,
    "methods that train no adapter": lambda s: not s.method.is_adapter,
    "dropout": lambda s: bool(s.config.method.dropout or s.config.method.text_dropout),
    "marks.images own or none": lambda s: s.config.marks.images != "joined",
    "other losses than dpo": lambda s: not s.config.prefers,
    "method.init_from": lambda s: bool(s.config.method.init_from),
    "run.stop_when": lambda s: s.config.run.stop_when is not None,
    "no saves on the way": lambda s: not (s.config.save.every_steps or s.config.save.every_epochs),
    "run.steps and run.epochs empty": lambda s: s.config.is_open_ended,
    "schedules that end with the run": lambda s: s.optim.lr_scheduler not in ENDLESS,
    "method.training_adapter": lambda s: bool(s.config.method.training_adapter),
    "save.arrangement": lambda s: s.config.save.arrangement not in s.method.arrangements,
    "save.layout": lambda s: s.method.is_adapter and s.config.save.layout not in s.method.layouts,
    "a method that it has no place for": lambda s: True,
    "save.best": lambda s: s.config.save.best,
    "results laid out for other scripts": lambda s: s.config.save.arrangement != "run",
    "stochastic_rounding and fused_backward_pass": lambda s: (
        s.optim.stochastic_rounding or s.optim.fused_backward_pass
    ),
    "optimizers other than adamw, adam and sgd": lambda s: not s.optimizer.shards,
    "save.best_by images": lambda s: s.config.seeks_best and s.config.save.best_by == "images",
    "EMA in RAM": lambda s: s.optim.ema.enabled and s.optim.ema.on_cpu,
    "the CPU": lambda s: s.device == "cpu",
    "class images in fp16": lambda s: (
        s.config.prior.makes_images and s.config.prior.precision == "fp16"
    ),
    "a 4-bit base": lambda s: s.config.memory.quantize == "nf4",
    "a base in fp8": lambda s: s.config.memory.quantize == "fp8",
    "8-bit and paged optimizers, Lion": lambda s: s.optimizer.package == "bitsandbytes",
}
"""Whether a thing of the table is asked for."""


@dataclass(frozen=True)
class Rule:
    """Two things that exclude each other."""

    first: str
    second: str
    reason: str
    do: str
    where: str
    """The field that the error points at."""

    def broken(self, asked: Asked) -> bool:
        """Whether both are asked for."""
        return HOLDS[self.first](asked) and HOLDS[self.second](asked)


def _rules() -> Iterator[Rule]:
    first = where = ""
    lines = iter(TABLE.splitlines())
    for line in lines:
        if line.startswith(" "):
            second, _, reason = line.strip().partition(": ")
            yield Rule(first, second, reason, next(lines).strip(), where)
        else:
            first, _, where = line.partition(" @ ")


RULES = tuple(_rules())


def refuse(asked: Asked) -> list[UserError]:
    """One error for each rule that is broken, in the table's order."""
    return [
        UserError(
            f"{rule.first} cannot be combined with {rule.second}: {rule.reason}",
            where=rule.where,
            do=rule.do,
        )
        for rule in RULES
        if rule.broken(asked)
    ]


def refuse_settings(config: TrainConfig, *, device: str = "", processes: int = 1) -> None:
    """Refuses what no images and no base could make right.

    Args:
        config: each value of which is within its own range.
        device: see :class:`Asked`.
        processes: how many share the work.

    Raises:
        UserError: the first thing that is wrong.
    """
    for error in refuse(Asked(config, device, processes)):
        raise error
    _ = config.memory.limit
    Schedule(config.optim, total=1)
    config.objective.timestep_range(steps=1000)
    wanted = config.run.resume
    if wanted not in ("", "latest") and not wanted.removeprefix("step-").isdecimal():
        raise UserError(
            f"{wanted!r} is not a saved step",
            where="run.resume",
            do='Give the number of a step, "latest", or nothing.',
        )


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
        "<!-- Written by python -m dreambooth_core.options.combinations docs/combinations.md -->",
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Writes the page to the path that is given."""
    Path(argv[0]).write_text(as_markdown(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
