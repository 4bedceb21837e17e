"""``dreambooth convert IN OUT``: a checkpoint or adapter in another format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    import torch

    from dreambooth_core.formats.checkpoints.convert import Report

HELP = "turn a checkpoint or adapter into another format"

EXAMPLES = """\
examples:
  dreambooth convert model.safetensors model-folder     single file to diffusers folder
  dreambooth convert model-folder model.safetensors     and back
  dreambooth convert old.ckpt new.safetensors --half    pickle to safetensors, fp16
  dreambooth convert lora.safetensors out.safetensors --layout kohya
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments; names that diffusers' own scripts have are spelled as there."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("source", metavar="IN", type=Path, help="file or folder to read")
    parser.add_argument(
        "target",
        metavar="OUT",
        type=Path,
        help="what to write: NAME.safetensors or NAME.ckpt is a single file, "
        "any other name a diffusers folder",
    )
    parser.add_argument("--json", action="store_true", help="report as JSON")
    _precision(parser)
    _reading(parser)
    _writing(parser)
    group = parser.add_argument_group("adapters")
    group.add_argument(
        "--layout",
        choices=("kohya", "diffusers", "peft"),
        help="names to write an adapter in (default: kohya, which A1111 and ComfyUI load)",
    )


def run(args: argparse.Namespace) -> int:
    """Converts. Raises ``UserError`` and ``SaveFailed``."""
    from dreambooth_core.formats.detect import identify

    identity = identify(args.source)
    if identity.kind == "adapter":
        return _adapter(args)
    if args.layout:
        raise UserError(f"--layout is for adapters; this is {identity.label}", where=args.source)
    if identity.kind not in ("checkpoint", "diffusers"):
        raise UserError(
            f"this is {identity.label}; checkpoints and adapters can be converted",
            where=args.source,
            do=identity.advice,
        )
    return _checkpoint(args)


def _precision(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision (default: as it is stored)")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--half", action="store_true", help="write fp16")
    choice.add_argument("--bf16", action="store_true", help="write bf16")
    choice.add_argument("--float", action="store_true", help="write fp32")


def _reading(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is read")
    group.add_argument(
        "--original_config_file",
        metavar="YAML",
        type=Path,
        help="the model's latent diffusion yaml (default: the one beside the file, if any)",
    )
    group.add_argument(
        "--prediction_type",
        metavar="TYPE",
        help="epsilon or v_prediction, where the file does not say or says it wrong",
    )
    group.add_argument(
        "--zero_terminal_snr",
        action="store_true",
        help="the model was trained with a noise schedule that ends in pure noise",
    )
    group.add_argument(
        "--ema", "--extract_ema", action="store_true", help="take the EMA weights of the UNet"
    )
    group.add_argument(
        "--vae", metavar="PATH", type=Path, help="replace the VAE: a file, a folder or a checkpoint"
    )
    group.add_argument(
        "--variant", help="read the folder's NAME.VARIANT.safetensors, for example fp16"
    )


def _writing(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is written")
    group.add_argument(
        "--scheduler_type",
        metavar="NAME",
        help="sampler of the folder: ddim, pndm, lms, euler, euler-ancestral, heun, dpm, unipc, …",
    )
    group.add_argument(
        "--image_size", metavar="PIXELS", type=int, help="the size that the model was made for"
    )
    extras = group.add_mutually_exclusive_group()
    extras.add_argument(
        "--keep_extra",
        action="store_true",
        help="keep tensors that no network uses, such as EMA weights and noise schedules",
    )
    extras.add_argument(
        "--drop_extra",
        action="store_true",
        help="drop also the text encoder's weights that Stable Diffusion does not use",
    )
    group.add_argument(
        "--yaml",
        choices=("auto", "always", "never"),
        default="auto",
        help="write the yaml that A1111 reads beside a single file (auto: where it is needed)",
    )
    group.add_argument("--title", help="the model's name in the file's metadata")
    group.add_argument(
        "--metadata", metavar="KEY=VALUE", action="append", default=[], help="add metadata"
    )


def _checkpoint(args: argparse.Namespace) -> int:
    from dreambooth_core.formats.checkpoints.convert import Request, convert_checkpoint

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
    _say(args, report)
    return 0


def _adapter(args: argparse.Namespace) -> int:
    from dreambooth_core.formats.adapters.read import read_adapter
    from dreambooth_core.formats.adapters.write import write_adapter

    layout = args.layout or "kohya"
    adapter = read_adapter(args.source)
    adapter.metadata.update(_metadata(args))
    write_adapter(adapter, args.target, layout=layout, dtype=_dtype(args))
    if args.json:
        _print_json({"kind": "adapter", "layout": layout, "files": [str(args.target)]})
    else:
        print(f"{args.target}: an adapter in {layout} names, {len(adapter.modules)} modules")
    return 0


def _dtype(args: argparse.Namespace) -> torch.dtype | None:
    import torch

    dtypes = {"half": torch.float16, "bf16": torch.bfloat16, "float": torch.float32}
    return next((dtype for name, dtype in dtypes.items() if getattr(args, name)), None)


def _metadata(args: argparse.Namespace) -> dict[str, str]:
    found = {"modelspec.title": args.title} if args.title else {}
    for item in args.metadata:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--metadata {item}: not of the form KEY=VALUE")
        found[key] = value
    return found


def _say(args: argparse.Namespace, report: Report) -> None:
    if args.json:
        _print_json({"kind": "checkpoint", **report.as_dict()})
        return
    size = sum(report.parameters.values()) / 1e6
    kind = " inpainting" if report.inpainting else ""
    print(
        f"{args.target}: {report.family}{kind}, {report.prediction_type}, {size:,.1f}M parameters"
    )
    for file in report.files:
        if file != args.target and file.parent == args.target.parent:
            print(f"also written: {file.name}")
    for warning in report.warnings:
        print(f"warning: {warning}")


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
