"""``dreambooth resize IN OUT --rank N``: changes an adapter's rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.commands import adapter_parts
from dreambooth_core.commands.options import argument
from dreambooth_core.errors import UserError


@dataclass(kw_only=True)
class Options(adapter_parts.Writing):
    """What the command takes."""

    source: Path = argument(
        kind="adapter", positional=True, metavar="IN", help="an adapter in any layout"
    )
    target: Path = argument(
        kind="adapter result",
        label="Name of the result",
        positional=True,
        metavar="OUT",
        help="what to write: plain LoRA",
    )
    rank: int | None = argument(None, help="the largest rank", between=(1, 65536))
    energy: float | None = argument(
        None,
        help="keep this share of every weight change's energy, for example 0.95",
        between=(1e-6, 1),
    )
    base: Path | None = argument(
        None, kind="model", help="the base model, for adapters that depend on it (DoRA, OFT)"
    )


def run(args: Options) -> None:
    """Resizes. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.formats.adapters.lowrank import Keep
    from dreambooth_core.formats.adapters.read import read_adapter
    from dreambooth_core.formats.adapters.resize import resize

    if args.rank is None and args.energy is None:
        raise UserError("neither a rank nor an energy is given", do="Give --rank or --energy.")
    keep = Keep(args.rank, args.energy)
    adapter = read_adapter(args.source)
    base, dtype = adapter_parts.base_of(args.base), adapter_parts.dtype_of(args.dtype)
    smaller, report = resize(adapter, keep, base=base, dtype=dtype)
    hosts = adapter_parts.write(args, smaller, args.target)
    ranks = Counter(report.ranks.values())
    told = {"file": str(args.target), "ranks": report.ranks, "error": report.error}
    lines = [
        f"{args.target}: {len(smaller.modules)} modules, ranks "
        + ", ".join(f"{rank} ({ranks[rank]})" for rank in sorted(ranks)),
        f"lost: {report.error:.2%} of the change",
    ]
    adapter_parts.tell_written(args, told, lines, hosts)
