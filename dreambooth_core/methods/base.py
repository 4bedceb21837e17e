"""What a method must be able to do."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.methods.table import METHODS


@dataclass(frozen=True)
class Trainable:
    """The parameters of one model that are trained."""

    component: str
    """``unet`` or ``transformer``, ``text_encoder``, ``text_encoder_2``; of learned tokens
    ``token``, ``token_2``."""
    parameters: dict[str, nn.Parameter]

    @property
    def is_text(self) -> bool:
        """Whether they belong to a text encoder, which has a learning rate of its own."""
        return self.component.startswith("text_encoder")

    @property
    def is_token(self) -> bool:
        """Whether they are the rows of a learned token: no weight decay, a higher rate."""
        return self.component.startswith("token")

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters.values())


class Method(ABC):
    """One way of training: prepares a base's models and reads the result out of them."""

    _trainables: Sequence[Trainable] = ()
    """What :meth:`attach` gave; its parameters may be renewed in place."""

    def __init__(self, options: MethodOptions, parts: Components) -> None:
        self.options = options
        self.parts = parts

    @property
    def passed_models(self) -> list[nn.Module]:
        """The models that gradients pass through, trained or not."""
        return [self.parts.denoiser, *(self.parts.text_encoders if self.trains_text else ())]

    @property
    def trained_models(self) -> dict[str, nn.Module]:
        """The base's models that this configuration trains."""
        parts, options = self.parts, self.options
        denoiser = {parts.family.denoiser: parts.denoiser} if options.train_denoiser else {}
        return denoiser | (parts.text_models if options.train_text_encoder else {})

    @property
    def trains_text(self) -> bool:
        """Whether text must be encoded anew at each step."""
        return any(name != self.parts.family.denoiser for name in self.trained_models)

    @abstractmethod
    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        """Freezes the base, adds what is trained, in ``dtype``, started from ``seed``.

        Raises:
            UserError: nothing is to be trained, or the base has nothing of that kind.
        """

    def adapter(self) -> Adapter | None:
        """The result as an adapter, or None where there is none."""
        return None

    def embedding(self) -> dict[str, Tensor] | None:
        """The learned token's vectors under the hosts' names, or None without one."""
        return None

    def as_base(self) -> AbstractContextManager[None]:
        """Inside, the models answer as the base does, as if nothing had been trained.

        Raises:
            UserError: the base itself is trained.
        """
        raise UserError(
            f"{self.options.kind} changes the base, which cannot be asked any more",
            where="prior.source",
            do="Set prior.source to images.",
        )

    _start: Sequence[tuple[nn.Parameter, Tensor]] = ()

    def remember(self) -> None:
        """Keeps a copy of what is trained as it is now, for :meth:`as_remembered`."""
        self._start = [(p, p.detach().clone()) for _, p in self._named()]

    @contextmanager
    def as_remembered(self) -> Iterator[None]:
        """Inside, without gradients, the models answer as they did when :meth:`remember` was
        called. Nothing is copied: what is trained lies aside meanwhile."""
        aside = [parameter.data for parameter, _ in self._start]
        for parameter, start in self._start:
            parameter.data = start
        try:
            yield
        finally:
            for (parameter, _), data in zip(self._start, aside, strict=True):
                parameter.data = data

    def caption_for_proof(self, captions: Sequence[str]) -> str:
        """A caption whose answer shows what was learned.

        Raises:
            UserError: the learned token is in none of them.
        """
        return captions[0]

    def as_result(self) -> AbstractContextManager[None]:
        """Inside, nothing is there that only helps to train: the models are what the result will
        make of the base."""
        return nullcontext()

    def detach(self) -> bool:
        """Takes what was trained off, if that leaves the base as it was, to the bit, in the memory;
        training is over then. False where it does not, and nothing has changed."""
        return False

    def round_to(self, dtype: torch.dtype) -> None:
        """Makes an adapter's weights what a file of ``dtype`` holds of them; training is over
        then."""
        return

    def freeze(self) -> None:
        """Makes the whole base take no gradient."""
        for model in [*self.parts.models.values(), self.parts.vae]:
            model.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """Everything trained, by unique names, for a checkpoint."""
        return {name: parameter.detach() for name, parameter in self._named()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes back what :meth:`tensors` gave. Raises ``KeyError`` if a name is missing."""
        for name, parameter in self._named():
            parameter.copy_(tensors[name])

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for group in self._trainables:
            for name, parameter in group.parameters.items():
                yield f"{group.component}.{name}", parameter


def method_for(options: MethodOptions, parts: Components) -> Method:
    """The method that ``options.kind`` names, for a loaded base."""
    module, _, name = METHODS[options.kind].target.partition(":")
    found: type[Method] = getattr(importlib.import_module(module), name)
    return found(options, parts)
