"""The fastest attention and order of weights for a run, by a trial of each at its own shapes
(``memory.attention``, ``memory.channels_last``).

Which one wins depends on the GPU, its libraries' versions, the number of tokens, the size of heads
and the precision, so nothing but a trial at the run's own shapes tells. What was found is kept in a
file and not tried again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.disk import write_text
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import SaveFailed, UserError
from dreambooth_core.memory.measure import peak_memory
from dreambooth_core.options.memory import AUTO, FASTEST, ON
from dreambooth_core.randomness import seed_globally
from dreambooth_core.trainer.prepare import CACHE_FOLDER
from dreambooth_core.trainer.train import Training

log = logging.getLogger(__name__)

SDPA: dict[str, tuple[str, ...]] = {
    "flash": ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH"),
    "cudnn": ("CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"),
    "efficient": ("EFFICIENT_ATTENTION", "MATH"),
}
"""torch's kernels, each with those that stand in where it knows no such shape or mask."""

MORE_MEMORY = 1.05
"""A kernel that takes more than this, of what the most frugal one takes, is no choice."""

_KEPT = 64

FILE = "attention.json"
LAYOUTS = "layout.json"

# In half precision a GPU's tensor cores read channels last; a tensor that comes in another order is
# turned around first, in every pass. diffusers' norms turn it back, so which order wins depends on
# the network and the GPU.
FORMATS: dict[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


@dataclass(frozen=True)
class Cost:
    """What one trial took."""

    seconds: float
    peak: int
    """Bytes of the device."""


@contextmanager
def sdpa_by(name: str) -> Iterator[None]:
    """Inside, torch's attention runs by one of :data:`SDPA` where that can be."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = [getattr(SDPBackend, each) for each in SDPA[name]]
    with sdpa_kernel(backends, set_priority=True):
        yield


def fastest(
    trials: Mapping[str, Callable[[], Cost]], file: Path, key: str, what: str = "attention"
) -> str | None:
    """The name of the fastest of the trials that take no more memory than others.

    Args:
        trials: each measures one kernel; one that fails is no choice.
        file: where results are kept.
        key: what they depend on.
        what: is tried, for the log.

    Returns:
        None if all failed.
    """
    try:
        known = read_json(file)
    except UserError:  # there is none yet, or it is damaged
        known = {}
    entry = known.get(key)
    found = entry.get("fastest") if isinstance(entry, dict) else None
    if isinstance(found, str) and found in trials:
        return found
    costs: dict[str, Cost] = {}
    for name, trial in trials.items():
        try:
            costs[name] = trial()
        except (RuntimeError, NotImplementedError, ValueError) as error:  # out of memory is one
            log.info("%s: %s is no choice: %s", what, name, str(error).splitlines()[:1])
    least = min((cost.peak for cost in costs.values()), default=0)
    fit = {name: cost for name, cost in costs.items() if cost.peak <= MORE_MEMORY * least}
    best = min(fit, key=lambda name: fit[name].seconds, default=None)
    told = {name: round(cost.seconds, 5) for name, cost in costs.items()}
    log.info("%s: %s is the fastest of %s", what, best, told)
    if best is not None:
        kept = [*known.items()][-_KEPT + 1 :]
        entry = {"fastest": best, "seconds": told}
        try:
            write_text(file, json.dumps({**dict(kept), key: entry}, indent=1))
        except SaveFailed as error:  # then the next run tries again
            log.info("%s", error.line)
    return best


@contextmanager
def chosen(training: Training) -> Iterator[None]:
    """Inside, the run's weights lie and its attention is as the configuration asks, or as is
    fastest. Nothing that is drawn depends on the trials, and no weight takes a step."""
    lay_out(training)
    if training.config.memory.attention != FASTEST:
        yield
        return
    names = [*SDPA, *(["xformers"] if _takes_xformers(training) else [])]
    trials: dict[str, Callable[[], Cost]] = {
        name: partial(_trial, training, name) for name in names
    }
    training.reporter.emit("progress", stage="attention", step=0, steps=len(names))
    name = fastest(trials, _folder(training) / FILE, _key(training))
    with _by(training, name) if name else nullcontext():
        yield


def lay_out(training: Training) -> None:
    """Puts the denoiser's frozen convolutions into the order that is asked for, or that is
    fastest."""
    weights = frozen_convolutions(training.parts.denoiser)
    wanted = training.config.memory.channels_last
    if wanted == ON:
        arrange(weights, "channels_last")
    if wanted == AUTO and weights and _may_gain(training):
        trials = {name: partial(_trial, training, name) for name in FORMATS}
        name = fastest(trials, _folder(training) / LAYOUTS, _key(training), "weights")
        arrange(weights, name or "contiguous")  # each trial leaves its own


def frozen_convolutions(model: nn.Module) -> list[Tensor]:
    """The weights ``[out, in, height, width]`` of convolutions over more than one pixel that are
    not trained: an optimizer's states have the order of what they belong to, and saved states
    would no longer fit."""
    found = (module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    return [weight for weight in found if not weight.requires_grad and weight.shape[2:].numel() > 1]


def arrange(weights: Iterable[Tensor], name: str) -> None:
    """Puts weights into one of :data:`FORMATS`. Their values stay, and what they compute does but
    for rounding; what comes out of a convolution lies as its weight does."""
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=FORMATS[name])


def _may_gain(training: Training) -> bool:
    """Whether the order of weights can matter, and one process can try it."""
    memory, precision = training.config.memory, training.precision
    return (
        precision.device.type == "cuda"
        and precision.dtype in (torch.float16, torch.bfloat16)
        and training.processes.count == 1
        and not (memory.compile or memory.share)
    )


def _folder(training: Training) -> Path:
    """Where results of trials are kept."""
    config = training.config
    return Path(config.data.cache_folder or Path(config.run.output) / CACHE_FOLDER)


@contextmanager
def _by(training: Training, name: str) -> Iterator[None]:
    """Inside, attention by one kernel, or weights in one order."""
    if name in FORMATS:
        arrange(frozen_convolutions(training.parts.denoiser), name)
        yield
        return
    precision, denoiser = training.precision, training.parts.denoiser
    kind = name if name not in SDPA else "sdpa"
    apply_attention(denoiser, kind, precision.device, precision.dtype)
    with sdpa_by(name) if name in SDPA else nullcontext():
        yield


def _trial(training: Training, name: str) -> Cost:
    """The cost of the first pass of the next step, forward and backward; no weight takes one."""
    passes, counts = training.plan.passes(training.step, training.processes.rank)
    device = training.precision.device

    def step() -> None:
        seed_globally("dropout", training.seed, training.step, 0, device=device.type)
        try:
            total, *_ = training.losses(passes[0], training.step, counts)
            total.backward()
        finally:
            for parameter in training.stepper.parameters:
                parameter.grad = None

    with _by(training, name):
        step()  # kernels are chosen and built
        with peak_memory(device) as peak:
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - began
    return Cost(seconds, peak.peak)


def _takes_xformers(training: Training) -> bool:
    """Whether the denoiser's layers can be given xformers, and it runs here."""
    precision = training.precision
    try:
        sizes = apply_attention(
            training.parts.denoiser, "xformers", precision.device, precision.dtype
        )
    except UserError:
        return False
    return bool(sizes)


def _key(training: Training) -> str:
    """What decides which kernel wins."""
    config, device = training.config, training.precision.device
    passes, _ = training.plan.passes(training.step, training.processes.rank)
    sizes = sorted((len(group), group[0].size) for group in passes)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    memory = config.memory
    return repr(
        (
            gpu,
            torch.__version__,
            training.parts.family.name,
            training.parts.configs[training.parts.family.denoiser].get("_class_name"),
            training.precision.dtype,
            sizes,
            memory.gradient_checkpointing,
            memory.quantize,
            memory.share,
            config.method.kind,
        )
    )
