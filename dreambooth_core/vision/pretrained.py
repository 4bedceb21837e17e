"""Loading a model of transformers that looks at images, from this machine or the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError
from dreambooth_core.formats.storage import read_header

T = TypeVar("T")


LARGEST = 100_000_000
"""Of any number in a configuration, and :data:`MOST_LAYERS` of those that count layers or heads:
what these ask for is made before the weights are looked at."""
MOST_LAYERS = 1_000

TROUBLE = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    SafetensorError,
)
"""What transformers raises for a model that is damaged or of another kind."""


@dataclass(frozen=True)
class Pretrained:
    """A model that somebody has trained."""

    source: str
    """Its name on the hub, or a folder."""
    size: str = ""
    """What is downloaded, for people; empty if nobody knows."""

    def load(
        self, what: str, load: Callable[..., T], *, instead: str = "another", download: bool = False
    ) -> T:
        """The model, from this machine if it is here.

        Nothing that comes with a model is run: code of its own is refused.

        Args:
            what: what it is, for people.
            load: called with arguments for ``from_pretrained``.
            instead: what else there is, where it needs a package that is not installed.
            download: whether it may be fetched.

        Raises:
            UserError: it is not on this machine and may not be fetched, cannot be fetched, or is
                damaged or of another kind.
        """
        name = self.source
        here = os.path.isdir(name)
        if here:
            _refuse_damaged(Path(name), what)
        try:
            return load(local_files_only=True, trust_remote_code=False)
        except ImportError as error:
            raise _lacking(name, instead, error) from error
        except TROUBLE as error:
            if here or not isinstance(error, OSError | ValueError):
                raise UserError(f"this is no {what}: {first_line(error)}", where=name) from error
            if not download:
                raise UserError(
                    f"the {what} {name} is not on this machine",
                    do=f"Let it be fetched from the hub{f' ({self.size})' if self.size else ''} "
                    "with --download, or name a folder.",
                ) from error
        try:
            return load(trust_remote_code=False)
        except ImportError as error:
            raise _lacking(name, instead, error) from error
        except TROUBLE as error:
            raise UserError(f"the {what} {name} cannot be fetched: {first_line(error)}") from error

    def load_both(
        self, classes: tuple[Any, Any], device: torch.device, what: str, **more: Any
    ) -> tuple[Any, Any]:
        """Its processor, and itself: in fp16 for CUDA, in fp32 elsewhere, not yet on the device.

        Args:
            classes: transformers' classes of the processor and of the model.
            device: where it will work.
            more: as :meth:`load`, which raises as this does.
        """
        dtype = torch.float16 if device.type == "cuda" else torch.float32

        def load(**given: Any) -> tuple[Any, Any]:
            processor = classes[0].from_pretrained(self.source, **given)
            return processor, classes[1].from_pretrained(self.source, dtype=dtype, **given)

        return self.load(what, load, **more)


def placed(inputs: Mapping[str, Tensor], model: Any, device: torch.device) -> dict[str, Tensor]:
    """What a processor made, on the model's device and in its precision."""
    return {
        name: tensor.to(device, model.dtype if tensor.is_floating_point() else None)
        for name, tensor in inputs.items()
    }


def first_line(error: BaseException) -> str:
    """What a library says of an error, without its advice."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:200]}…"


def _lacking(name: str, instead: str, error: ImportError) -> UserError:
    return UserError(
        f"{name} needs a package that is not installed: {first_line(error)}",
        do=f"Choose {instead}.",
    )


def _refuse_damaged(folder: Path, what: str) -> None:
    """Looks at what can be looked at before anything is made of it."""
    config = read_json(folder / "config.json", f"this is no {what}")
    for key, number in _numbers(config):
        most = MOST_LAYERS if "layers" in key or "heads" in key else LARGEST
        if not -most <= number <= most:
            raise UserError(f"{key[:60]} is {number:g}", where=folder / "config.json")
    for file in sorted(folder.glob("*.safetensors")):
        read_header(file)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _numbers(each, name)
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value
