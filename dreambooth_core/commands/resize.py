"""``dreambooth resize IN OUT --rank N``: changes an adapter's rank."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from dreambooth_core.commands import adapter_parts
from dreambooth_core.errors import UserError

HELP = "change an adapter's rank"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("source", metavar="IN", type=Path, help="an adapter in any layout")
    parser.add_argument("target", metavar="OUT", type=Path, help="what to write: plain LoRA")
    parser.add_argument("--rank", type=int, help="the largest rank")
    parser.add_argument(
        "--energy",
        type=float,
        help="keep this share of every weight change's energy, for example 0.95",
    )
    parser.add_argument(
        "--base", type=Path, help="the base model, for adapters that depend on it (DoRA, OFT)"
    )
    adapter_parts.add_writing(parser)


def run(args: argparse.Namespace) -> int:
    """Resizes. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.formats.adapters.lowrank import Keep
    from dreambooth_core.formats.adapters.read import read_adapter
    from dreambooth_core.formats.adapters.resize import resize

    if args.rank is None and args.energy is None:
        raise UserError("neither a rank nor an energy is given", do="Give --rank or --energy.")
    keep = Keep(args.rank, args.energy)
    adapter = read_adapter(args.source)
    smaller, report = resize(
        adapter,
        keep,
        base=adapter_parts.base_of(args.base),
        dtype=adapter_parts.dtype_of(args.dtype),
    )
    adapter_parts.write(args, smaller, args.target)
    ranks = Counter(report.ranks.values())
    told = {"file": str(args.target), "ranks": report.ranks, "error": report.error}
    adapter_parts.tell(
        args,
        told,
        [
            f"{args.target}: {len(smaller.modules)} modules, ranks "
            + ", ".join(f"{rank} ({ranks[rank]})" for rank in sorted(ranks)),
            f"lost: {report.error:.2%} of the change",
        ],
    )
    return 0
