"""A running average of the trained weights (EMA; Polyak & Juditsky 1992)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.optim.options import EmaOptions


@contextmanager
def put_back(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Afterwards, parameters hold exactly what they held before."""
    kept = [(parameter, parameter.detach().clone()) for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in kept:
                parameter.copy_(value)


class Ema:
    """Averages of named parameters, fp32, on the parameters' device or on the CPU.

    Args:
        parameters: what is averaged, by unique names. The average begins as a copy.
        options: the ``optim.ema`` section.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], options: EmaOptions) -> None:
        self.options = options
        self._parameters = dict(parameters)
        self.averages: dict[str, Tensor] = {
            name: parameter.detach().to(
                device="cpu" if options.on_cpu else parameter.device,
                dtype=torch.float32,
                copy=True,
            )
            for name, parameter in self._parameters.items()
        }

    def decay(self, step: int) -> float:
        """The decay of the update after optimizer step number ``step``, counted from 1.

        With warm-up it is at most ``(1 + n) / (10 + n)`` after ``n`` updates, as in TensorFlow's
        and diffusers' averages. Averaging every k-th step uses the k-th power.
        """
        every = self.options.every
        full = self.options.decay**every
        if not self.options.warmup:
            return full
        updates = step // every
        return min(full, (1 + updates) / (10 + updates))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the parameters after optimizer step number ``step``, counted from 1."""
        if step % self.options.every:
            return
        share = 1.0 - self.decay(step)
        for name, parameter in self._parameters.items():
            average = self.averages[name]
            current = parameter.detach().to(average.device, torch.float32)
            average.lerp_(current, share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters hold the averages; afterwards exactly what they held before."""
        with put_back(self._parameters.values()):
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self.averages[name])
            yield

    def state_dict(self) -> dict[str, Any]:
        """The averages by name."""
        return dict(self.averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`state_dict` gave.

        Raises:
            UserError: the names or shapes are not those of this run's parameters.
        """
        fits = state.keys() == self.averages.keys() and all(
            state[name].shape == average.shape for name, average in self.averages.items()
        )
        if not fits:
            raise UserError(
                "the saved EMA belongs to other weights",
                do="It was saved with other trained parts; start anew, or switch EMA off.",
            )
        for name, average in self.averages.items():
            average.copy_(state[name])
