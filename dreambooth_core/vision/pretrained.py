"""Loading a model of transformers that looks at images, from this machine or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from dreambooth_core.errors import UserError


@dataclass(frozen=True)
class Pretrained:
    """A model that somebody has trained."""

    source: str
    """Its name on the hub, or a folder."""
    size: str = ""
    """What is downloaded, for people; empty if nobody knows."""


def load_pretrained(
    wanted: Pretrained,
    classes: tuple[Any, Any],
    device: torch.device,
    *,
    what: str,
    instead: str,
    download: bool = False,
) -> tuple[Any, Any]:
    """A processor and its model: in fp16 for CUDA, in fp32 elsewhere, not yet on the device.

    Args:
        wanted: which.
        classes: transformers' classes of the processor and of the model.
        device: where it will work.
        what: what it is called in messages.
        instead: what else there is, where it needs a package that is not installed.
        download: whether it may be fetched where it is not on this machine.

    Raises:
        UserError: it is not on this machine and may not be fetched, cannot be fetched, or is no
            such model.
    """
    source = wanted.source
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    for here in (True, False):
        try:
            processor = classes[0].from_pretrained(source, local_files_only=here)
            model = classes[1].from_pretrained(source, local_files_only=here, dtype=dtype)
        except ImportError as error:
            raise UserError(
                f"{source} needs a package that is not installed: {first_line(error)}",
                do=f"Choose {instead}.",
            ) from error
        except (OSError, ValueError) as error:
            if here and download:
                continue
            if not here:
                raise UserError(f"{source} cannot be fetched: {first_line(error)}") from error
            size = f" ({wanted.size})" if wanted.size else ""
            raise UserError(
                f"the {what} {source} is not on this machine",
                do=f"Let it be fetched from the hub{size} with --download, or name a folder.",
            ) from error
        return processor, model
    raise AssertionError("unreachable")


def first_line(error: Exception) -> str:
    """What a library says of an error, without its advice."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
