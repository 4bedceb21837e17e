"""``dreambooth bake BASE A:0.8 --out FILE``: writes adapters into a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.commands import adapter_parts
from dreambooth_core.commands.options import Reporting, argument, tell
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.requests import WeightedFile

if TYPE_CHECKING:
    import torch

    from dreambooth_core.formats.adapters.apply import Baked


@dataclass(kw_only=True)
class Options(adapter_parts.Weighted, Reporting):
    """What the command takes."""

    base: Path = argument(
        kind="model", positional=True, metavar="BASE", help="a checkpoint, file or folder"
    )
    adapters: list[WeightedFile] = argument(
        kind="adapter",
        positional=True,
        metavar="FILE[:WEIGHT]",
        help="adapters, weight 1 without a number",
    )
    out: Path = argument(
        kind="model result",
        label="Name of the result",
        help="NAME.safetensors is a single file, any other name a diffusers folder",
    )
    dtype: str | None = argument(
        None,
        label="Precision",
        choices=adapter_parts.DTYPES,
        help="type to store the model in (default: as it is; what was GGUF or fp8 in bf16)",
    )
    prediction_type: str | None = argument(
        None, metavar="TYPE", help="where the base does not say it: v_prediction, …"
    )


def run(args: Options) -> None:
    """Bakes. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.families.stable_diffusion.convert import refuse_overlap
    from dreambooth_core.families.stable_diffusion.folder import write_folder
    from dreambooth_core.families.stable_diffusion.read import read_model
    from dreambooth_core.families.stable_diffusion.single_write import write_single_file
    from dreambooth_core.formats.adapters.apply import bake
    from dreambooth_core.formats.adapters.denoisers import is_transformer

    dtype = adapter_parts.dtype_of(args.dtype)
    refuse_overlap(args.base, args.out)
    if is_transformer(args.base):
        _denoiser(args, dtype)
        return
    model = read_model(args.base, prediction_type=args.prediction_type, dtype=dtype)
    parts = adapter_parts.read_parts(args, args.adapters)
    states, report = bake({n: c.tensors for n, c in model.components.items()}, parts, dtype)
    for name, component in model.components.items():
        component.tensors = states[name]
    model.metadata["dreambooth_baked"] = ", ".join(f"{p.name}:{p.weight:g}" for p in parts)
    warnings = list(model.warnings)
    if args.out.suffix in (".safetensors", ".ckpt"):
        warnings += write_single_file(model, args.out, dtype=dtype).warnings
    else:
        write_folder(model, args.out, dtype=dtype)
    _report(args, len(parts), report, warnings)


def _denoiser(args: Options, dtype: torch.dtype | None) -> None:
    """A diffusion transformer: the same file with other weights; its encoders are not asked."""
    import torch

    from dreambooth_core.formats import storage
    from dreambooth_core.formats.adapters.apply import bake
    from dreambooth_core.formats.adapters.denoisers import metadata_of, read_denoiser
    from dreambooth_core.formats.adapters.naming import TRANSFORMER

    if args.out.suffix != ".safetensors":
        raise UserError(
            "the denoiser of this family is written as one file",
            where=args.out,
            do="Give --out NAME.safetensors.",
        )
    base = read_denoiser(args.base)
    parts = adapter_parts.read_parts(args, args.adapters)
    changed = dtype or (torch.bfloat16 if base.stored else None)
    states, report = bake({TRANSFORMER: base.tensors}, parts, changed)
    warnings = []
    if base.stored:
        which = "its weights" if base.stored == "GGUF" or dtype else "the weights that change"
        warnings.append(
            f"the base is stored as {base.stored}: {which} are written as {args.dtype or 'bf16'}"
        )
    metadata = metadata_of(args.base)
    metadata["dreambooth_baked"] = ", ".join(f"{p.name}:{p.weight:g}" for p in parts)
    storage.write_tensors(args.out, base.with_changes(states[TRANSFORMER], dtype), metadata)
    _report(args, len(parts), report, warnings)


def _report(args: Options, count: int, report: Baked, warnings: list[str]) -> None:
    lines = [
        f"{args.out}: {count} adapters in {report.modules} weights",
        f"change: {report.change:.2%} of the weights",
        f"lost by rounding to the stored type: {report.rounding:.2%} of the change",
        *(f"warning: {text}" for text in warnings),
    ]
    told = {"file": str(args.out), **vars(report), "warnings": warnings}
    tell(args, told, lines)
