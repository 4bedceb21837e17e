"""What the adapter commands share: weighted adapters, blocks, types, and how results are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.commands.options import Reporting, argument, tell
from dreambooth_core.errors import UserError
from dreambooth_core.formats.layouts import LAYOUTS
from dreambooth_core.jobs.requests import WeightedFile

if TYPE_CHECKING:
    import torch

    from dreambooth_core.formats.adapters.merge import Part
    from dreambooth_core.formats.adapters.model import Adapter

DTYPES = ("fp32", "fp16", "bf16")


@dataclass(kw_only=True)
class Weighted:
    """Adapters are named and weighed."""

    te_weight: list[float] = argument(
        factory=list,
        label="Text encoder weights",
        flags=["--te-weight"],
        between=(-1000, 1000),
        metavar="W",
        help="other weights for the text encoders: one for all adapters, or one for each",
    )
    block: list[str] = argument(
        factory=list,
        label="Blocks",
        repeated=True,
        metavar="[N:]NAME=FACTOR",
        help="multiply the weights of a block, such as down_blocks.1=0.5 or text_encoder=0; "
        "2:mid_block=0 is for the second adapter alone",
    )


@dataclass(kw_only=True)
class Writing(Reporting):
    """An adapter is written."""

    layout: str = argument(
        "host",
        choices=LAYOUTS,
        help="names to write (host: those that most hosts load for the family)",
    )
    dtype: str | None = argument(
        None, label="Precision", choices=DTYPES, help="type to store (default: as it was)"
    )


def read_parts(args: Weighted, files: Sequence[WeightedFile]) -> list[Part]:
    """Reads each. Raises ``UserError`` when counts or names do not fit."""
    from dreambooth_core.formats.adapters.merge import Part
    from dreambooth_core.formats.adapters.read import read_adapter

    text_weights = args.te_weight
    if len(text_weights) not in (0, 1, len(files)):
        raise UserError(
            f"{len(text_weights)} weights for text encoders, but {len(files)} adapters",
            where="--te-weight",
            do="Give one for all, or one for each.",
        )
    factors = _factors(args.block, len(files))
    return [
        Part(
            read_adapter(file.path),
            file.weight,
            text_weights[index % len(text_weights)] if text_weights else None,
            factors[index],
            file.path.stem,
        )
        for index, file in enumerate(files)
    ]


def block_numbers(texts: list[str]) -> dict[str, float]:
    """``NAME=NUMBER`` pairs, names with their component. Raises ``UserError`` if one is not."""
    return {full_block(name): value for _, name, value in map(_block, texts)}


UNET_PARTS = (
    *("down_blocks", "mid_block", "up_blocks"),
    *("conv_in", "conv_norm_out", "conv_out", "time_embedding", "add_embedding"),
)
"""Where the names of a UNet's layers begin."""
MOST = 1000.0
"""The largest factor of a block, or rank, and the smallest below 0."""


def full_block(name: str) -> str:
    """A block's name with its component: ``down_blocks.1`` is the UNet's.

    Raises:
        UserError: no network has such a part.
    """
    first, _, rest = name.partition(".")
    if first in ("text_encoder", "text_encoder_2", "transformer") or name == "unet":
        return name
    inside = rest if first == "unet" else name
    if inside.partition(".")[0] not in UNET_PARTS:
        raise UserError(
            f"there is no block {name!r}",
            do=f"Write text_encoder or one of {', '.join(UNET_PARTS)}, such as down_blocks.1.",
        )
    return f"unet.{inside}"


def dtype_of(name: str | None) -> torch.dtype | None:
    """The type by its short name; ``None`` stays ``None``."""
    from dreambooth_core.devices import STORED

    return STORED[name] if name else None


def base_of(path: Path | None) -> dict[str, torch.Tensor] | None:
    """Weights of the base by module name, for adapters whose change depends on it."""
    if path is None:
        return None
    from dreambooth_core.families.stable_diffusion.read import read_model
    from dreambooth_core.formats.adapters.apply import base_weights
    from dreambooth_core.formats.adapters.denoisers import is_transformer, read_denoiser
    from dreambooth_core.formats.adapters.naming import TRANSFORMER

    if is_transformer(path):
        return base_weights({TRANSFORMER: read_denoiser(path).tensors})
    parts = read_model(path, need_vae=False)
    return base_weights({name: c.tensors for name, c in parts.components.items()})


def write(args: Writing, adapter: Adapter, path: Path) -> list[dict[str, Any]]:
    """Writes a result, and says what each host loads of it; nothing in memory is a view on the
    file that may be replaced."""
    from dreambooth_core.formats.adapters.hosts import host_table
    from dreambooth_core.formats.adapters.write import write_adapter

    write_adapter(adapter, path, args.layout, dtype=dtype_of(args.dtype))
    return host_table(path, adapter.family)


def tell_written(
    args: Reporting, report: dict[str, Any], lines: list[str], hosts: Sequence[Mapping[str, Any]]
) -> None:
    """Prints a report of a written adapter, with what hosts load of it."""
    from dreambooth_core.formats.adapters.hosts import unheard

    if warning := unheard(hosts):
        lines = [*lines, f"warning: {warning}"]
    tell(args, {**report, "hosts": list(hosts)} if hosts else report, lines)


def _factors(blocks: list[str], count: int) -> list[dict[str, float]]:
    factors: list[dict[str, float]] = [{} for _ in range(count)]
    for text in blocks:
        which, name, value = _block(text)
        if which is not None and not 1 <= which <= count:
            raise UserError(f"there is no adapter {which}", where=text, do=f"There are {count}.")
        for index in range(count) if which is None else (which - 1,):
            factors[index][full_block(name)] = value
    return factors


def _block(text: str) -> tuple[int | None, str, float]:
    name, equals, value = text.partition("=")
    which, colon, rest = name.partition(":")
    try:
        if not equals:
            raise ValueError(text)
        number = float(value)
        if not abs(number) <= MOST:
            raise ValueError(value)
        return (int(which), rest, number) if colon else (None, name, number)
    except ValueError as error:
        raise UserError(
            f"{text!r} is not a block and a number", do="Write for example down_blocks.1=0.5."
        ) from error
