"""``Stepper``: how a step is taken, whatever the optimizer and however the weights are kept.

The training loop says ``begin(step)``, runs forward and backward, and says ``finish(step)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from dreambooth_core.devices import cut_like, is_sharded, uncut
from dreambooth_core.errors import UserError
from dreambooth_core.optim.build import ParamGroup, build_optimizer
from dreambooth_core.optim.ema import put_back
from dreambooth_core.optim.options import OptimOptions
from dreambooth_core.optim.schedules import Schedule
from dreambooth_core.optim.table import OPTIMIZERS
from dreambooth_core.randomness import generator

# What the configuration says holds, not what a checkpoint says: it may have been changed.
_CONFIGURED = (
    "name",
    "initial_lr",
    "lr",
    "weight_decay",
    "betas",
    "eps",
    "momentum",
    "fused",
    "foreach",
    "capturable",
    "warmup_steps",
)

AnyTensor = TypeVar("AnyTensor", bound=Tensor)


class Stepper:
    """An optimizer with its schedule, clipping, rounding, and its place in the backward pass.

    Args:
        options: the ``optim`` section.
        groups: what is trained, each group with its learning rate.
        total_steps: optimizer steps of the whole run.
        seed: the run's seed, for stochastic rounding.

    Raises:
        UserError: see ``build_optimizer`` and ``Schedule``. What cannot be combined is
            refused earlier, by ``options.combinations``.
    """

    def __init__(
        self,
        options: OptimOptions,
        groups: Sequence[ParamGroup],
        *,
        total_steps: int,
        seed: int = 0,
    ) -> None:
        self.options = options
        self.kind = OPTIMIZERS[options.optimizer]
        self.schedule = Schedule(options, total_steps)
        self.optimizer = build_optimizer(options, groups)
        self._seed = seed
        self._step = 0
        self._numbers = {p: n for n, p in enumerate(self.parameters)}
        if options.fused_backward_pass:
            step_in_backward(self.optimizer, self._step_one)
        self.begin(0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All trained parameters, in a fixed order."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def learning_rates(self) -> dict[str, float]:
        """The learning rate of each group now; for Prodigy and D-Adaptation what they found."""
        return {
            str(group["name"]): float(group["lr"]) * float(group.get("d", 1.0))
            for group in self.optimizer.param_groups
        }

    def begin(self, step: int) -> None:
        """Sets the learning rates of optimizer step ``step``, counted from 0.

        With ``fused_backward`` the weights then change during the backward pass.
        """
        self._step = step
        for group in self.optimizer.param_groups:
            rate = group["initial_lr"]
            group["lr"] = rate * self.schedule.factor(step, rate)

    def finish(self, scaler: Any = None) -> Tensor | None:
        """Takes the step with the gradients that are there, and frees them.

        ``scaler`` is a ``torch.amp.GradScaler`` or None. Returns the norm of all gradients
        before clipping, a scalar tensor; None with ``fused_backward``, where they are gone.
        """
        if self.options.fused_backward_pass:
            return None
        scaling = scaler is not None and scaler.is_enabled()
        if scaling:
            scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.parameters, self.options.max_grad_norm)
        if scaling:
            scaler.step(self.optimizer)
            scaler.update()
        elif self.options.stochastic_rounding:
            self._step_rounded()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Inside, the weights are those to sample with or save as the result.

        Only schedule-free optimizers, which train at another point than they average, have
        others. Afterwards the weights are exactly what they were.
        """
        if not self.kind.averages:
            yield
            return
        with put_back(self.parameters):
            self.optimizer.eval()  # type: ignore[attr-defined]
            try:
                yield
            finally:
                self.optimizer.train()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state, readable with ``torch.load(weights_only=True)``. Its tensors are
        the live ones: write them before the next step."""
        state: dict[str, Any] = _plain(self.optimizer.state_dict())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave, bit for bit; rates stay as configured.

        torch and bitsandbytes cast states to the dtype of the weights when they load them, which
        would shorten fp32 states of bf16 weights; so the saved tensors are put back afterwards.

        Raises:
            UserError: the state belongs to other parameters or another optimizer.
        """
        optimizer, parameters = self.optimizer, self.parameters
        configured = [
            {key: group[key] for key in _CONFIGURED if key in group}
            for group in optimizer.param_groups
        ]
        numbers = [n for group in state["param_groups"] for n in group["params"]]
        states = dict(state["state"])
        for parameter, number in zip(parameters, numbers, strict=False):
            if is_sharded(parameter) and isinstance(states.get(number), dict):  # in pieces (FSDP2)
                states[number] = {k: cut_like(v, parameter) for k, v in states[number].items()}
        state = {**state, "state": states}
        try:
            optimizer.load_state_dict(state)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"the saved optimizer state does not fit ({error})",
                do="It was saved with other trained parts or another optimizer; start anew.",
            ) from error
        for group, own in zip(optimizer.param_groups, configured, strict=True):
            group.update(own)
        for parameter, number in zip(parameters, numbers, strict=True):
            saved = states.get(number)
            if isinstance(saved, dict):
                live = optimizer.state[parameter]
                for name, value in saved.items():
                    live[name] = _put_back(live.get(name), value, parameter.device)

    def _step_one(self, group: dict[str, Any], parameter: nn.Parameter) -> None:
        with only(self.optimizer, group, parameter):
            if self.options.stochastic_rounding:
                with as_fp32([parameter], [self._generator(parameter)]):
                    self.optimizer.step()
            else:
                self.optimizer.step()

    def _step_rounded(self) -> None:
        """One parameter at a time where that is the same, so that few are in fp32 at once."""
        if self.kind.per_parameter:
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self._step_one(group, parameter)
            return
        parameters = [p for p in self.parameters if p.grad is not None]
        with as_fp32(parameters, [self._generator(p) for p in parameters]):
            self.optimizer.step()

    def _generator(self, parameter: nn.Parameter) -> Generator:
        number = self._numbers[parameter]
        return generator("rounding", self._seed, self._step, number, device=str(parameter.device))


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scales all gradients so that their common L2 norm is at most ``max_norm`` (Pascanu et al.
    2013, arXiv:1211.5063).

    Returns the norm before clipping, a scalar. ``max_norm`` 0 only measures.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = _norm(gradients)
    # On a GPU asking for the number would wait for the device; there the scaling is cheap.
    needless = norm.device.type == "cpu" and bool(norm <= max_norm)
    if max_norm > 0 and not needless:
        for some in _alike(with_gradient):
            torch.nn.utils.clip_grads_with_norm_(some, max_norm, norm)
    return norm


def _norm(gradients: list[Tensor]) -> Tensor:
    """Of all together; of those in pieces, every process has to bring its own."""
    norms = [torch.nn.utils.get_total_norm(some) for some in _alike(gradients)]
    whole = [uncut(norm) for norm in norms]
    return whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))


def _alike(tensors: list[AnyTensor]) -> list[list[AnyTensor]]:
    """Whole tensors and those in pieces apart, which no kernel takes together."""
    found = ([t for t in tensors if not is_sharded(t)], [t for t in tensors if is_sharded(t)])
    return [some for some in found if some]


@contextmanager
def only(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> Iterator[None]:
    """Inside, ``optimizer`` sees one parameter of one of its groups and nothing else."""
    groups, parameters = optimizer.param_groups, group["params"]
    optimizer.param_groups, group["params"] = [group], [parameter]
    try:
        yield
    finally:
        optimizer.param_groups, group["params"] = groups, parameters


def step_in_backward(
    optimizer: Optimizer, step: Callable[[dict[str, Any], nn.Parameter], None]
) -> None:
    """From now on each parameter takes its step as soon as its gradient is there, which is freed
    then, so at no time do all gradients exist. Lv et al. 2023, "Full Parameter Fine-tuning for
    Large Language Models with Limited Resources" (arXiv:2306.09782).

    Args:
        optimizer: one whose kind is ``per_parameter``.
        step: takes a torch group and a parameter with its gradient, and makes its step.
    """

    def take(group: dict[str, Any], parameter: nn.Parameter) -> None:
        step(group, parameter)
        parameter.grad = None

    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.register_post_accumulate_grad_hook(partial(take, group))


def round_into(target: Tensor, source: Tensor, generator: Generator) -> None:
    """Writes ``source`` (fp32) into ``target`` (bf16, same shape), rounded stochastically.

    bf16 has 8 significant bits, so a step smaller than about 1/256 of a weight is lost when it is
    rounded to the nearest. Rounded up or down by chance, in proportion to the distance, it is right
    on average (Gupta et al. 2015, arXiv:1502.02551; for bf16 weights Zamirai et al. 2020,
    arXiv:2010.06192).

    bf16 is the upper half of fp32: adding a random number below 2**16 to the bits carries into
    the upper half with exactly the right probability. Values that bf16 holds stay as they are.
    """
    bits = torch.randint(
        0, 1 << 16, source.shape, dtype=torch.int32, device=source.device, generator=generator
    )
    bits += source.contiguous().view(torch.int32)
    bits &= -65536
    target.copy_(bits.view(torch.float32))


@contextmanager
def as_fp32(parameters: list[nn.Parameter], generators: list[Generator]) -> Iterator[None]:
    """Inside, bf16 parameters and their gradients are fp32; afterwards rounded stochastically.

    An optimizer that steps inside makes its states in fp32. The gradients are gone afterwards.
    """
    kept: list[Tensor] = []
    for parameter in parameters:
        gradient = parameter.grad
        kept.append(parameter.data)
        parameter.grad = None
        parameter.data = parameter.data.float()
        parameter.grad = None if gradient is None else gradient.float()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, original, generator in zip(parameters, kept, generators, strict=True):
                stepped = parameter.data
                moved = parameter.grad is not None
                parameter.grad = None
                parameter.data = original
                if moved:
                    round_into(original, stepped, generator)


def _put_back(live: Any, saved: Any, device: torch.device) -> Any:
    if not isinstance(saved, Tensor):
        return saved
    if isinstance(live, Tensor) and live.dtype == saved.dtype and live.shape == saved.shape:
        # Keeps the place that the library chose: paged memory, the CPU for step counts.
        target = live if saved.dim() == 0 or live.device == device else live.to(device)
        with torch.no_grad():
            target.copy_(saved)
        return target
    return saved.detach().clone().to(device)


def _plain(value: Any) -> Any:
    """Containers made plain, so that ``torch.load(weights_only=True)`` reads them."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if hasattr(value, "item") and not isinstance(value, (bool, int, float, str)):
        return value.item()
    return value
