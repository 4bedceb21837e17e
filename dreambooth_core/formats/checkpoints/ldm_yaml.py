"""The ``.yaml`` of latent diffusion: read for what shapes cannot tell, written for A1111."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.unet import UNetPlan
from dreambooth_core.formats.checkpoints.unet_config import heads_of_width


@dataclass(frozen=True)
class LdmYaml:
    """What a yaml says that weights do not, and what it says that can be checked by them."""

    path: Path
    prediction_type: str
    num_heads: int | None
    head_width: int | None
    betas: dict[str, Any]
    scale_factor: float | None
    text_folders: tuple[Path | None, ...]
    """For each text encoder the folder with its ``config.json``, if the yaml names one."""
    unet: dict[str, Any] = field(default_factory=dict)
    """The UNet's parameters as written."""

    def heads(self, plan: UNetPlan) -> tuple[int, ...] | None:
        """Attention heads at each level, or ``None`` where the yaml does not say."""
        if self.head_width:
            return heads_of_width(plan, self.head_width)
        return (self.num_heads,) * len(plan.levels) if self.num_heads else None

    def check(self, plan: UNetPlan) -> None:
        """Raises ``UserError`` if this yaml belongs to a model of another size."""
        width = plan.levels[0].channels
        real: dict[str, Any] = {
            "in_channels": plan.in_channels,
            "out_channels": plan.out_channels,
            "model_channels": width,
            "context_dim": plan.context,
            "channel_mult": [level.channels / width for level in plan.levels],
        }
        for name, value in real.items():
            said = self.unet.get(name)
            if isinstance(said, Sequence) and name == "context_dim":
                said = said[0]
            if said is not None and said != value:
                raise UserError(
                    f"this yaml is of another model: {name} is {said}, the file has {value}",
                    where=self.path,
                )


def find_yaml(path: Path, given: str | Path | None = None) -> LdmYaml | None:
    """The yaml that was given, or the one beside a checkpoint, or ``None``."""
    if given is not None:
        return read_yaml(Path(given), path)
    beside = path.with_suffix(".yaml")
    return read_yaml(beside, path) if beside.is_file() else None


def read_yaml(path: Path, model: Path | None = None) -> LdmYaml:
    """Reads a latent diffusion or generative-models configuration.

    Raises:
        UserError: no such file, not YAML, or not a configuration of that kind.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"this yaml cannot be read ({error})", where=path) from error
    try:
        if not isinstance(loaded, dict):
            raise TypeError("no mapping")
        params = loaded["model"]["params"]
        unet = dict((params.get("unet_config") or params["network_config"])["params"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            "this yaml is not a Stable Diffusion configuration (model.params.unet_config)",
            where=path,
        ) from error
    width = unet.get("num_head_channels")
    betas = {
        ours: params[theirs]
        for ours, theirs in (
            ("beta_start", "linear_start"),
            ("beta_end", "linear_end"),
            ("num_train_timesteps", "timesteps"),
        )
        if params.get(theirs) is not None
    }
    return LdmYaml(
        path=path,
        prediction_type=_prediction(params),
        num_heads=unet.get("num_heads") if unet.get("num_heads", -1) != -1 else None,
        head_width=width if width not in (None, -1) else None,
        betas=betas,
        scale_factor=params.get("scale_factor"),
        text_folders=tuple(_text_folder(c, path, model) for c in _text_configs(params)),
        unet=unet,
    )


def text_config(folder: Path | None) -> dict[str, Any] | None:
    """The ``config.json`` of a text encoder's folder, or ``None``."""
    if folder is None:
        return None
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(config, dict):
        return None
    nested = config.get("text_config")
    return nested if isinstance(nested, dict) else config


def _prediction(params: Mapping[str, Any]) -> str:
    if params.get("parameterization") == "v":
        return "v_prediction"
    denoiser = (params.get("denoiser_config") or {}).get("params") or {}
    scaling = (denoiser.get("scaling_config") or {}).get("target", "")
    return "v_prediction" if scaling.rpartition(".")[2].startswith("V") else "epsilon"


def _text_configs(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if params.get("cond_stage_config"):
        return [params["cond_stage_config"]]
    conditioner = ((params.get("conditioner_config") or {}).get("params") or {}).get("emb_models")
    return [c for c in conditioner or [] if "CLIPEmbedder" in c.get("target", "")]


def _text_folder(config: Mapping[str, Any], yaml: Path, model: Path | None) -> Path | None:
    """The folder that ``version`` names; when the file was moved, the one of its name beside it."""
    version = (config.get("params") or {}).get("version")
    if not isinstance(version, str) or not version:
        return None
    name = version.replace("\\", "/").rstrip("/").rpartition("/")[2]
    places = [Path(version), yaml.parent / version, yaml.parent / name]
    if model is not None:
        places.append(model.parent / name)
    return next((place for place in places if (place / "config.json").is_file()), None)
