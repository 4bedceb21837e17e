"""What a method must be able to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from dreambooth_core.families.base import Components
from dreambooth_core.formats.adapters.model import Adapter
from dreambooth_core.methods.options import MethodOptions


@dataclass(frozen=True)
class Trainable:
    """The parameters of one model that are trained."""

    component: str
    """``unet``, ``text_encoder`` or ``text_encoder_2``."""
    parameters: dict[str, nn.Parameter]

    @property
    def is_text(self) -> bool:
        """Whether they belong to a text encoder, which has a learning rate of its own."""
        return self.component != "unet"

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters.values())


class Method(ABC):
    """One way of training: prepares a base's models and reads the result out of them."""

    def __init__(self, options: MethodOptions, parts: Components) -> None:
        self.options = options
        self.parts = parts

    @property
    def trained_models(self) -> dict[str, nn.Module]:
        """The base's models that this configuration trains."""
        wanted = {
            name: model
            for name, model in self.parts.models.items()
            if (self.options.unet if name == "unet" else self.options.text_encoder)
        }
        return wanted

    @property
    def trains_text(self) -> bool:
        """Whether text must be encoded anew at each step."""
        return any(name != "unet" for name in self.trained_models)

    @abstractmethod
    def attach(self, seed: int) -> list[Trainable]:
        """Freezes the base, adds what is trained, in fp32, started from ``seed``."""

    @abstractmethod
    def adapter(self) -> Adapter | None:
        """The result as an adapter, or None where the method changes the base itself."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything trained, by unique names, for a checkpoint."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what :meth:`tensors` gave. Raises ``KeyError`` if a name is missing."""
