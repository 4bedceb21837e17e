"""The two conversion scripts, by way of this engine's converter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreambooth_core.compat.flags import Flag
from dreambooth_core.compat.translate import read_flags, require
from dreambooth_core.errors import Unsupported, UserError

TO_DIFFUSERS = "convert_original_stable_diffusion_to_diffusers"
TO_ORIGINAL = "convert_diffusers_to_original_stable_diffusion"

_UNCLIP = "Stable unCLIP is not a model that this engine trains"
_FOUND = "found from the weights"

FLAGS: dict[str, tuple[Flag, ...]] = {
    TO_DIFFUSERS: (
        Flag("checkpoint_path", "text", "IN"),
        Flag("dump_path", "text", "OUT"),
        Flag("original_config_file", "text", "--original_config_file"),
        Flag("config_files", "text", "--original_config_file"),
        Flag("scheduler_type", "text", "--scheduler_type", "without it the family's own"),
        Flag("prediction_type", "text", "--prediction_type"),
        Flag("image_size", "int", "--image_size"),
        Flag("extract_ema", "switch", "--ema"),
        Flag("half", "switch", "--half"),
        Flag("vae_path", "text", "--vae"),
        Flag("upcast_attention", "switch", "unet/config.json", "upcast_attention"),
        Flag("from_safetensors", "switch", how="found from the file"),
        Flag("to_safetensors", "switch", how="always so"),
        Flag("num_in_channels", "int", how=_FOUND),
        Flag("pipeline_type", "text", how=_FOUND),
        Flag("pipeline_class_name", "text", how=_FOUND),
        Flag("device", "text", how="nothing is computed, so no device is used"),
        Flag("stable_unclip", "text", refused=_UNCLIP),
        Flag("stable_unclip_prior", "text", refused=_UNCLIP),
        Flag("clip_stats_path", "text", refused=_UNCLIP),
        Flag("controlnet", "switch", refused="ControlNets are not converted here"),
    ),
    TO_ORIGINAL: (
        Flag("model_path", "text", "IN"),
        Flag("checkpoint_path", "text", "OUT"),
        Flag("half", "switch", "--half"),
        Flag("use_safetensors", "switch", how="the ending of --checkpoint_path says it"),
    ),
}


def convert(script: str, argv: Sequence[str]) -> list[str]:
    """Does what a conversion script's command line asks for; what was done, in lines.

    Raises:
        UserError: a wrong command line, or a model that cannot be converted.
        SaveFailed: the target could not be written.
    """
    from dreambooth_core.families.stable_diffusion.convert import convert_checkpoint

    table = FLAGS[script]
    given = read_flags(script, argv, table)
    refused = [f"--{f.name}: {f.refused}" for f in table if f.refused and f.name in given]
    if refused:
        raise Unsupported("; ".join(refused), do="Leave it out.")
    nothing = [f"--{f.name}: {f.how}" for f in table if f.verdict == "nothing" and f.name in given]
    request = _to_diffusers(given) if script == TO_DIFFUSERS else _to_original(given)
    report = convert_checkpoint(request)
    warnings, channels = list(report.warnings), 9 if report.inpainting else 4
    if given.get("num_in_channels", channels) != channels:
        warnings.insert(0, f"--num_in_channels: the UNet has {channels}")
    made = f"{request.target}: {report.family}, {report.prediction_type}"
    return [*nothing, made, *(f"warning: {warning}" for warning in warnings)]


def _to_diffusers(given: dict[str, Any]) -> Any:
    import torch

    from dreambooth_core.families.stable_diffusion.convert import Request

    require(given, ["checkpoint_path", "dump_path"])
    yaml = given.get("original_config_file") or given.get("config_files")
    return Request(
        source=Path(given["checkpoint_path"]),
        target=_folder(given["dump_path"]),
        config_file=Path(yaml) if yaml else None,
        prediction_type=given.get("prediction_type"),
        scheduler=given.get("scheduler_type"),
        dtype=_half(given) or torch.float32,  # as the script does, whatever the file holds
        ema=given.get("extract_ema", False),
        vae=Path(given["vae_path"]) if given.get("vae_path") else None,
        resolution=given.get("image_size"),
        upcast_attention=given.get("upcast_attention", False),
    )


def _to_original(given: dict[str, Any]) -> Any:
    from dreambooth_core.families.stable_diffusion.convert import SINGLE, Request

    require(given, ["model_path", "checkpoint_path"])
    target = Path(given["checkpoint_path"])
    safe = given.get("use_safetensors", False)
    if target.suffix not in SINGLE or (safe and target.suffix == ".ckpt"):
        wanted = ".safetensors" if safe else ".safetensors or .ckpt"
        raise UserError(f"the name must end in {wanted}", where=f"--checkpoint_path {target}")
    return Request(source=Path(given["model_path"]), target=target, dtype=_half(given))


def _folder(text: str) -> Path:
    path = Path(text)
    if path.suffix in (".ckpt", ".safetensors"):
        raise UserError("this is to be a folder", where=f"--dump_path {text}")
    return path


def _half(given: dict[str, Any]) -> Any:
    import torch

    return torch.float16 if given.get("half") else None
