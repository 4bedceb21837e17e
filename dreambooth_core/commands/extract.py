"""``dreambooth extract BASE TUNED OUT``: gets an adapter out of two checkpoints."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.commands import adapter_parts
from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from dreambooth_core.formats.adapters.extract import Extraction

HELP = "get an adapter out of two checkpoints"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("base", metavar="BASE", type=Path, help="the model before training")
    parser.add_argument("tuned", metavar="TUNED", type=Path, help="the trained model")
    parser.add_argument("target", metavar="OUT", type=Path, help="the adapter to write")
    parser.add_argument("--rank", type=int, help="the largest rank (default: 32)")
    parser.add_argument(
        "--energy", type=float, help="keep this share of every change's energy, for example 0.95"
    )
    parser.add_argument(
        "--block",
        action="append",
        default=[],
        metavar="NAME=RANK",
        help="another rank for a block, such as text_encoder=8; a number below 1 is an energy",
    )
    parser.add_argument("--rest", action="store_true", help="also norms and biases, in full")
    adapter_parts.add_writing(parser)


def run(args: argparse.Namespace) -> int:
    """Extracts. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.formats.adapters.extract import extract
    from dreambooth_core.formats.adapters.names import layers_of
    from dreambooth_core.formats.checkpoints.read import read_model

    base = read_model(args.base, need_vae=False)
    tuned = read_model(args.tuned, need_vae=False)
    if base.family != tuned.family:
        raise UserError(
            f"the base is {base.family} and the trained model is {tuned.family}",
            where=args.tuned,
            do="Both must be of one family.",
        )
    states = [
        {name: component.tensors for name, component in parts.components.items()}
        for parts in (base, tuned)
    ]
    adapter, report = extract(states[0], states[1], _options(args), base.family)
    adapter.layers_per_block = layers_of(base.components["unet"].config)
    adapter.metadata["ss_sd_model_name"] = args.base.name
    adapter_parts.write(args, adapter, args.target)
    ranks = Counter(report.ranks.values())
    lines = [
        f"{args.target}: {len(adapter.modules)} modules, ranks "
        + ", ".join(f"{rank} ({ranks[rank]})" for rank in sorted(ranks)),
        f"lost by cutting to the rank: {report.error:.2%} of the change",
    ]
    if report.left_out:
        lines.append(
            f"left out: {report.left_out:.2%} of the change, in norms, biases or embeddings"
            + ("" if args.rest else " (--rest takes norms and biases along)")
        )
    adapter_parts.tell(args, {"file": str(args.target), **vars(report)}, lines)
    return 0


def _options(args: argparse.Namespace) -> Extraction:
    import torch

    from dreambooth_core.formats.adapters.extract import Extraction
    from dreambooth_core.formats.adapters.lowrank import Keep

    rank = 32 if args.rank is None and args.energy is None else args.rank
    blocks = {}
    for name, value in adapter_parts.block_numbers(args.block).items():
        blocks[name] = Keep(energy=value) if value < 1 else Keep(rank=int(value))
    dtype = adapter_parts.dtype_of(args.dtype) or torch.float32
    return Extraction(Keep(rank, args.energy), blocks, args.rest, dtype)
