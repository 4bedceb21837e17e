"""``dreambooth merge A:0.7 B:0.4 --out FILE``: adds up adapters with weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.commands import adapter_parts
from dreambooth_core.commands.options import argument
from dreambooth_core.config.fields import MAX_SEED
from dreambooth_core.jobs.requests import WeightedFile

_BOTH = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Those that there are for matrices apart and for whole weight changes."""
METHODS = ("cat", "svd", "linear", *_BOTH, *(f"{name}_svd" for name in _BOTH))

SIGNS = ("total", "frequency")

EXAMPLES = """\
methods:
  cat       the exact weighted sum; ranks add up (default)
  svd       the sum, cut to --rank by its largest singular values; the loss is told
  ..._svd   TIES, DARE or pruning on the full weight changes, then cut to --rank
  linear, ties, dare_linear, dare_ties, magnitude_prune
            as in peft: up and down matrices mixed apart, equal ranks; not a sum

examples:
  dreambooth merge dog.safetensors:1.0 crochet.safetensors:1.05 --out crochet_dog.safetensors
  dreambooth merge a.safetensors:0.7 b.safetensors:0.4 --method svd --rank 16 --out ab.safetensors
  dreambooth merge a.safetensors b.safetensors:-1 --out a_without_b.safetensors
"""


@dataclass(kw_only=True)
class Options(adapter_parts.Weighted, adapter_parts.Writing):
    """What the command takes."""

    adapters: list[WeightedFile] = argument(
        kind="adapter",
        positional=True,
        metavar="FILE[:WEIGHT]",
        help="adapters in any layout; the weight is what follows the last colon, 1 without",
    )
    out: Path = argument(kind="adapter result", label="Name of the result", help="what to write")
    method: str = argument("cat", choices=METHODS, help="how to merge")
    rank: int | None = argument(
        None, help="rank to cut to (default: the largest)", between=(1, 65536)
    )
    density: float = argument(
        0.5, help="share of numbers that TIES and the others keep", between=(1e-6, 1)
    )
    sign: str = argument("total", choices=SIGNS, help="TIES: how signs are voted")
    seed: int = argument(0, help="for the random methods (DARE)", between=(0, MAX_SEED))
    base: Path | None = argument(
        None, kind="model", help="the base model, for adapters that depend on it (DoRA, OFT)"
    )


def run(args: Options) -> None:
    """Merges. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.formats.adapters.merge import Plan, merge

    dtype = adapter_parts.dtype_of(args.dtype)
    plan = Plan(args.method, args.rank, args.density, args.sign, args.seed, dtype)
    parts = adapter_parts.read_parts(args, args.adapters)
    merged, report = merge(parts, plan, adapter_parts.base_of(args.base))
    hosts = adapter_parts.write(args, merged, args.out)
    ranks = ", ".join(str(rank) for rank in report.ranks) or "none"
    lines = [
        f"{args.out}: {len(parts)} adapters by {report.method}, {report.modules} modules, "
        f"rank {ranks}",
        f"difference from the exact sum: {report.error:.2%}",
    ]
    if report.truncated:
        lines.append(f"lost by cutting to the rank: {report.truncated:.2%}")
    lines += [f"warning: {text}" for text in report.warnings]
    told = {"file": str(args.out), **vars(report), "ranks": list(report.ranks)}
    told["warnings"] = list(report.warnings)
    adapter_parts.tell_written(args, told, lines, hosts)
