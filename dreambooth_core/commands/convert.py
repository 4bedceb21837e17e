"""``dreambooth convert IN OUT``: a checkpoint or adapter in another format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_core.commands import adapter_parts
from dreambooth_core.commands.options import Reporting, argument, tell
from dreambooth_core.errors import UserError
from dreambooth_core.formats.layouts import LAYOUTS

if TYPE_CHECKING:
    import torch


EXAMPLES = """\
examples:
  dreambooth convert model.safetensors model-folder     single file to diffusers folder
  dreambooth convert model-folder model.safetensors     and back
  dreambooth convert old.ckpt new.safetensors --half    pickle to safetensors, fp16
  dreambooth convert z-image-folder z-image.safetensors  the denoiser's file, as hosts load it
  dreambooth convert z-image.gguf z-image.safetensors    and of other files of hosts
  dreambooth convert lora.safetensors out.safetensors --layout kohya
"""


PRECISION = "precision (default: as it is stored)"
READ = "what is read"
WRITTEN = "what is written"


@dataclass(kw_only=True)
class Options(Reporting):
    """What the command takes; names that diffusers' own scripts have are spelled as there."""

    source: Path = argument(
        kind="any", positional=True, metavar="IN", help="file or folder to read"
    )
    target: Path = argument(
        kind="result",
        label="Name of the result",
        positional=True,
        metavar="OUT",
        help="what to write: NAME.safetensors or NAME.ckpt is a single file, "
        "any other name a diffusers folder",
    )
    half: bool = argument(False, group=f"{PRECISION}/", help="write fp16")
    bf16: bool = argument(False, group=f"{PRECISION}/", help="write bf16")
    float: bool = argument(False, group=f"{PRECISION}/", help="write fp32")
    original_config_file: Path | None = argument(
        None,
        kind="yaml",
        group=READ,
        metavar="YAML",
        help="the model's latent diffusion yaml (default: the one beside the file, if any)",
    )
    prediction_type: str | None = argument(
        None,
        group=READ,
        metavar="TYPE",
        help="epsilon or v_prediction, where the file does not say or says it wrong",
    )
    zero_terminal_snr: bool = argument(
        False,
        group=READ,
        help="the model was trained with a noise schedule that ends in pure noise",
    )
    ema: bool = argument(
        False, group=READ, flags=["--ema", "--extract_ema"], help="take the EMA weights of the UNet"
    )
    vae: Path | None = argument(
        None,
        kind="model",
        group=READ,
        metavar="PATH",
        help="replace the VAE: a file, a folder or a checkpoint",
    )
    variant: str | None = argument(
        None, group=READ, help="read the folder's NAME.VARIANT.safetensors, for example fp16"
    )
    scheduler_type: str | None = argument(
        None,
        group=WRITTEN,
        metavar="NAME",
        help="sampler of the folder: ddim, pndm, lms, euler, euler-ancestral, heun, dpm, unipc, …",
    )
    image_size: int | None = argument(
        None, group=WRITTEN, metavar="PIXELS", help="the size that the model was made for"
    )
    keep_extra: bool = argument(
        False,
        group=f"{WRITTEN}/",
        help="keep tensors that no network uses, such as EMA weights and noise schedules",
    )
    drop_extra: bool = argument(
        False,
        group=f"{WRITTEN}/",
        help="drop also the text encoder's weights that Stable Diffusion does not use",
    )
    yaml: str = argument(
        "auto",
        group=WRITTEN,
        choices=("auto", "always", "never"),
        help="write the yaml that A1111 reads beside a single file (auto: where it is needed)",
    )
    title: str | None = argument(
        None, group=WRITTEN, help="the model's name in the file's metadata"
    )
    metadata: list[str] = argument(
        factory=list, group=WRITTEN, repeated=True, metavar="KEY=VALUE", help="add metadata"
    )
    layout: str | None = argument(
        None,
        group="adapters",
        choices=LAYOUTS,
        help="names to write an adapter in (default: host, those that most hosts load)",
    )


def run(args: Options) -> None:
    """Converts. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.families.recognition.detect import identify

    identity = identify(args.source)
    if identity.kind == "adapter":
        _adapter(args)
        return
    if args.layout:
        raise UserError(f"--layout is for adapters; this is {identity.label}", where=args.source)
    if _flow(args):
        return
    if identity.kind not in ("checkpoint", "diffusers"):
        raise UserError(
            f"this is {identity.label}; checkpoints and adapters can be converted",
            where=args.source,
            do=identity.advice,
        )
    _checkpoint(args)


UNETS_ALONE = (
    *("original_config_file", "prediction_type", "zero_terminal_snr", "ema", "vae", "variant"),
    *("scheduler_type", "image_size", "keep_extra", "drop_extra"),
)


def _flow(args: Options) -> bool:
    """Converts the denoiser of a rectified-flow family; False where it is none."""
    from dreambooth_core.families.host_files.convert import convert_flow, find_flow
    from dreambooth_core.families.stable_diffusion.convert import refuse_overlap

    flow = find_flow(args.source)
    if flow is None:
        return False
    for name in UNETS_ALONE:
        if getattr(args, name):
            raise UserError(
                f"this is for Stable Diffusion 1, 2 and XL, and this is {flow.family.label}",
                where=f"--{name}",
            )
    refuse_overlap(args.source, args.target)
    numbers = convert_flow(flow, args.target, _dtype(args), _metadata(args))
    layout = "hosts" if args.target.suffix == ".safetensors" else "diffusers"
    family = flow.family
    told = {"kind": "denoiser", "family": family.name, "layout": layout, "parameters": numbers}
    size = f"{numbers / 1e6:,.1f}M parameters"
    tell(args, told, [f"{args.target}: the denoiser of {family.label} in {layout}' names, {size}"])
    return True


def _checkpoint(args: Options) -> None:
    from dreambooth_core.families.stable_diffusion.convert import Request, convert_checkpoint

    report = convert_checkpoint(
        Request(
            source=args.source,
            target=args.target,
            config_file=args.original_config_file,
            prediction_type=args.prediction_type,
            zero_terminal_snr=args.zero_terminal_snr,
            scheduler=args.scheduler_type,
            dtype=_dtype(args),
            ema=args.ema,
            vae=args.vae,
            variant=args.variant,
            extras="all" if args.keep_extra else "none" if args.drop_extra else "text",
            yaml=args.yaml,
            resolution=args.image_size,
            metadata=_metadata(args),
        )
    )
    size = sum(report.parameters.values()) / 1e6
    kind = " inpainting" if report.inpainting else ""
    beside = [f for f in report.files if f != args.target and f.parent == args.target.parent]
    lines = [
        f"{args.target}: {report.family}{kind}, {report.prediction_type}, {size:,.1f}M parameters",
        *(f"also written: {file.name}" for file in beside),
        *(f"warning: {warning}" for warning in report.warnings),
    ]
    tell(args, {"kind": "checkpoint", **report.as_dict()}, lines)


def _adapter(args: Options) -> None:
    from dreambooth_core.formats.adapters.hosts import host_table
    from dreambooth_core.formats.adapters.read import read_adapter
    from dreambooth_core.formats.adapters.write import host_layout, write_adapter

    adapter = read_adapter(args.source)
    layout = host_layout(adapter) if args.layout in (None, "host") else args.layout
    adapter.metadata.update(_metadata(args))
    write_adapter(adapter, args.target, args.layout or "host", dtype=_dtype(args))
    adapter_parts.tell_written(
        args,
        {"kind": "adapter", "layout": layout, "files": [str(args.target)]},
        [f"{args.target}: an adapter in {layout} names, {len(adapter.modules)} modules"],
        host_table(args.target, adapter.family),
    )


def _dtype(args: Options) -> torch.dtype | None:
    import torch

    dtypes = {"half": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
    return next((dtype for name, dtype in dtypes.items() if getattr(args, name)), None)


def _metadata(args: Options) -> dict[str, str]:
    found = {"modelspec.title": args.title} if args.title else {}
    for item in args.metadata:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--metadata {item}: not of the form KEY=VALUE")
        found[key] = value
    return found
