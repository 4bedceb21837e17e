"""``dreambooth extract BASE TUNED OUT``: gets an adapter out of two checkpoints."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.commands import adapter_parts
from dreambooth_core.commands.options import argument
from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from dreambooth_core.formats.adapters.extract import Extraction


@dataclass(kw_only=True)
class Options(adapter_parts.Writing):
    """What the command takes."""

    base: Path = argument(
        kind="model", positional=True, metavar="BASE", help="the model before training"
    )
    tuned: Path = argument(
        kind="model",
        label="Trained model",
        positional=True,
        metavar="TUNED",
        help="the trained model",
    )
    target: Path = argument(
        kind="adapter result",
        label="Name of the result",
        positional=True,
        metavar="OUT",
        help="the adapter to write",
    )
    rank: int | None = argument(None, help="the largest rank (default: 32)", between=(1, 65536))
    energy: float | None = argument(
        None, help="keep this share of every change's energy, for example 0.95", between=(1e-6, 1)
    )
    block: list[str] = argument(
        factory=list,
        label="Blocks",
        repeated=True,
        metavar="NAME=RANK",
        help="another rank for a block, such as text_encoder=8; a number below 1 is an energy",
    )
    rest: bool = argument(False, help="also norms and biases, in full")


def run(args: Options) -> None:
    """Extracts. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.families.names.unet import layers_of
    from dreambooth_core.families.stable_diffusion.read import read_model
    from dreambooth_core.formats.adapters.denoisers import is_transformer, read_denoiser
    from dreambooth_core.formats.adapters.extract import extract
    from dreambooth_core.formats.adapters.naming import TRANSFORMER

    kinds = [is_transformer(path) for path in (args.base, args.tuned)]
    layers, warnings = 2, []
    if all(kinds):
        denoisers = [read_denoiser(path) for path in (args.base, args.tuned)]
        families = [denoiser.names.family for denoiser in denoisers]
        stored = " and ".join(dict.fromkeys(each.stored for each in denoisers if each.stored))
        if stored:
            warnings.append(
                f"a model is stored as {stored}: the difference, and so the adapter, also holds "
                "what that rounding took away"
            )
        states = [{TRANSFORMER: denoiser.tensors} for denoiser in denoisers]
    elif any(kinds):
        families = ["a diffusion transformer" if kind else "a UNet" for kind in kinds]
        states = []
    else:
        models = [read_model(path, need_vae=False) for path in (args.base, args.tuned)]
        families = [model.family for model in models]
        states = [{n: c.tensors for n, c in model.components.items()} for model in models]
        layers = layers_of(models[0].components["unet"].config)
    if families[0] != families[1]:
        raise UserError(
            f"the base is {families[0]} and the trained model is {families[1]}",
            where=args.tuned,
            do="Both must be of one family.",
        )
    adapter, report = extract(states[0], states[1], _options(args), families[0])
    adapter.layers_per_block = layers
    adapter.metadata["ss_sd_model_name"] = args.base.name
    hosts = adapter_parts.write(args, adapter, args.target)
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
    lines += [f"warning: {text}" for text in warnings]
    told = {"file": str(args.target), **vars(report), "warnings": warnings}
    adapter_parts.tell_written(args, told, lines, hosts)


def _options(args: Options) -> Extraction:
    import torch

    from dreambooth_core.formats.adapters.extract import Extraction
    from dreambooth_core.formats.adapters.lowrank import Keep

    rank = 32 if args.rank is None and args.energy is None else args.rank
    blocks = {}
    for name, value in adapter_parts.block_numbers(args.block).items():
        blocks[name] = Keep(energy=value) if value < 1 else Keep(rank=int(value))
    dtype = adapter_parts.dtype_of(args.dtype) or torch.float32
    return Extraction(Keep(rank, args.energy), blocks, args.rest, dtype)
