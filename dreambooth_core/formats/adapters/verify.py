"""Proof on save: reads a written adapter back by someone else's code and compares images' maths.

The file goes through diffusers' or peft's own loader where they can take it, and through the
dense weight change where they cannot; the models' output is then compared with the trainer's.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.disk import sha256
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.families.names import UNetNames, record_of
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.describe import faults
from dreambooth_core.formats.adapters.model import NETWORKS, Adapter
from dreambooth_core.formats.adapters.naming import TRANSFORMER
from dreambooth_core.formats.adapters.peft_state import from_peft, take_off
from dreambooth_core.formats.adapters.read import read_adapter

log = logging.getLogger(__name__)

Models = Mapping[str, nn.Module]
Probe = Callable[[Models], Tensor]
"""Runs the models at a fixed seed and returns their output."""

_NAME = "proof_on_save"
_STORED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""What rounding the file may cost, as a share of the adapter's effect."""
_COMPUTED = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""What the models' own arithmetic may cost, as a share of the output."""


@dataclass(frozen=True)
class Proof:
    """Whether a saved adapter does what the trained one did."""

    passed: bool
    reader: str
    """``diffusers``, ``peft`` or ``dense``."""
    difference: float
    """‖output with the file - expected‖ / ‖expected‖."""
    tolerance: float
    """The largest difference that passes."""
    effect: float
    """‖expected - output of the base‖ / ‖expected‖."""
    sha256: dict[str, str]
    """Hash by file name."""
    problems: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For ``receipt.json``."""
        return {**asdict(self), "problems": list(self.problems)}


def verify_adapter(path: str | Path, models: Models, probe: Probe, expected: Tensor) -> Proof:
    """Compares what the file at ``path`` does to ``models`` with what the trainer's did.

    ``models``: the base by component, without any adapter; left as they were. ``expected``: the
    output of ``probe`` in training. A proof is returned in every case; look at ``passed``.
    """
    path = Path(path)
    hashes = {str(f.relative_to(path.parent).as_posix()): sha256(f) for f in _files(path)}
    try:
        adapter = read_adapter(path)
        problems = []
        if len(faults(adapter)[1]) == len(adapter.modules):
            problems.append("every weight change is zero: the file equals its base")
        with torch.no_grad():
            plain = probe(models)
            reader, actual = _read_back(path, adapter, models, probe)
    except DreamBoothError as error:
        return Proof(False, "none", float("inf"), 0.0, 0.0, hashes, (error.line,))
    size = _norm(expected) or 1.0
    effect, difference = _norm(expected - plain) / size, _norm(actual - expected) / size
    computed = next(p.dtype for model in models.values() for p in model.parameters())
    tolerance = _STORED.get(adapter.dtype, 1e-3) * effect + _COMPUTED.get(computed, 2e-5)
    if not bool(torch.isfinite(actual).all()):
        problems.append("the output has NaN")
    elif not difference <= tolerance:
        problems.append(f"the output differs by {difference:.2e}, allowed is {tolerance:.2e}")
    if not effect > 0:
        problems.append("the adapter changes nothing: the output equals the base's")
    return Proof(not problems, reader, difference, tolerance, effect, hashes, tuple(problems))


def _read_back(path: Path, adapter: Adapter, models: Models, probe: Probe) -> tuple[str, Tensor]:
    """The name of the loader that took the file, and the output with it."""
    folder = path.is_dir()
    name, through = ("peft", _through_peft) if folder else ("diffusers", _through_diffusers)
    plain = all(weights.is_plain for weights in adapter.modules.values())
    if folder or (plain and TRANSFORMER not in adapter.components):
        try:
            with through(path, adapter, models):
                return name, probe(models)
        except _NotTaken as error:
            log.info("%s does not take %s (%s), computing the weights instead", name, path, error)
    stack = AdapterStack(models)
    stack.load("saved", adapter)
    try:
        return "dense", probe(models)
    finally:
        stack.clear()


class _NotTaken(Exception):
    """A loader cannot take this file; another way must be found."""


@contextmanager
def _through_diffusers(path: Path, adapter: Adapter, models: Models) -> Iterator[None]:
    from diffusers import loaders
    from diffusers.utils import logging as chatter
    from transformers.utils import logging as bars

    record = record_of(adapter.family)
    mixin: Any = getattr(
        loaders, record.loader if isinstance(record, UNetNames) else UNetNames.loader
    )
    unet: Any = models["unet"]
    before, shown = chatter.get_verbosity(), bars.is_progress_bar_enabled()
    chatter.set_verbosity_error()
    bars.disable_progress_bar()
    wrapped: list[nn.Module] = []
    try:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft warns of patterns that match nothing
                state, alphas, metadata = mixin.lora_state_dict(
                    str(path), unet_config=unet.config, return_lora_metadata=True
                )
                # Through diffusers' own functions, under a name that no one else uses.
                given = {"network_alphas": alphas, "adapter_name": _NAME, "metadata": metadata}
                for component in adapter.components:
                    model: Any = models[component]
                    wrapped.append(model)
                    if component == "unet":
                        mixin.load_lora_into_unet(state, unet=model, **given)
                    else:
                        mixin.load_lora_into_text_encoder(
                            state, text_encoder=model, prefix=component, **given
                        )
                _all_arrived(adapter, models)
        except (ValueError, KeyError, RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise _NotTaken(str(error).splitlines()[0][:200]) from error
        yield
    finally:
        chatter.set_verbosity(before)
        if shown:
            bars.enable_progress_bar()
        for model in wrapped:
            take_off(model)


def _all_arrived(adapter: Adapter, models: Models) -> None:
    """A loader that skips keys, or mistakes an alpha, does so in silence: look at its layers.

    (diffusers 0.42 gives the attention layers of a kohya file the most common alpha.)
    """
    for component in adapter.components:
        made = from_peft(component, models[component], _NAME)
        wanted = {f"{component}.{path}": w for path, w in adapter.of(component)}
        if set(made) != set(wanted):
            raise _NotTaken(f"{len(made)} of {len(wanted)} layers of {component} arrived")
        for name, weights in wanted.items():
            if not math.isclose(made[name].alpha, weights.alpha, rel_tol=1e-5):
                raise _NotTaken(f"{name} arrived with alpha {made[name].alpha:g}")


@contextmanager
def _through_peft(path: Path, adapter: Adapter, models: Models) -> Iterator[None]:
    from peft import PeftModel

    wrapped: list[Any] = []
    try:
        try:
            for component in adapter.components:
                folder = path / component if (path / component).is_dir() else path
                wrapped.append(PeftModel.from_pretrained(models[component], str(folder)))
        except (ValueError, KeyError, RuntimeError, TypeError, OSError) as error:
            raise _NotTaken(str(error).splitlines()[0][:200]) from error
        yield
    finally:
        for model in wrapped:
            model.unload()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(f for c in (".", *NETWORKS) for f in (path / c).glob("*") if f.is_file())
    return [path]


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
