"""The ``.yaml`` of latent diffusion: read for what shapes cannot tell, written for A1111."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.disk import reading
from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.config_rules import SCHEDULER, TEXT
from dreambooth_core.families.stable_diffusion.unet import UNetPlan
from dreambooth_core.families.stable_diffusion.unet_config import heads_of_width
from dreambooth_core.formats import folders
from dreambooth_core.formats.checkpoints.rules import (
    NOTHING,
    Rule,
    check,
    number,
    one_of,
    refuse,
    whole,
)

LONGEST = 1 << 20
"""Bytes of a yaml; real ones have 5,000 at most."""
DEEPEST = 40
"""Mappings and lists in one another; real ones have ten."""

_PARAMS: dict[str, Rule] = {
    "parameterization": one_of("eps", "v", None),
    "linear_start": SCHEDULER["beta_start"] | NOTHING,
    "linear_end": SCHEDULER["beta_end"] | NOTHING,
    "timesteps": SCHEDULER["num_train_timesteps"] | NOTHING,
    "scale_factor": number(1e-4, 1e4) | NOTHING,
}
_UNET: dict[str, Rule] = {
    "num_heads": whole(1, 1024) | one_of(-1, None),
    "num_head_channels": whole(1, 4096) | one_of(-1, None),
}


@dataclass(frozen=True)
class LdmYaml:
    """What a yaml says that weights do not, and what it says that can be checked by them."""

    path: Path
    prediction_type: str = "epsilon"
    num_heads: int | None = None
    head_width: int | None = None
    betas: dict[str, Any] = field(default_factory=dict)
    scale_factor: float | None = None
    text_folders: tuple[Path | None, ...] = ()
    """For each text encoder the folder with its ``config.json``, if the yaml names one."""
    unet: dict[str, Any] = field(default_factory=dict)
    """The UNet's parameters as written."""
    family: str | None = None
    """The family that a known name stands for."""

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
        refuse(self._strange(plan, real), self.path)

    def _strange(self, plan: UNetPlan, real: Mapping[str, Any]) -> Iterator[str]:
        of_another = "this yaml is of another model: "
        for name, value in real.items():
            said = self.unet.get(name)
            if isinstance(said, list) and name == "context_dim" and said:
                said = said[0]
            if said is not None and said != value:
                yield f"{of_another}{name} is {str(said)[:80]}, the file has {value}"
        for level, count in zip(plan.levels, self.heads(plan) or (), strict=False):
            if level.attends and level.channels % count:
                yield (
                    f"{of_another}{level.channels} channels do not divide into {count} attention "
                    "heads"
                )


KNOWN = {
    name: LdmYaml(
        Path(name),
        "v_prediction" if name.endswith("-v.yaml") else "epsilon",
        num_heads=8 if family == "sd1" else None,
        head_width=None if family == "sd1" else 64,
        family=family,
    )
    for name, family in {
        "v1-inference.yaml": "sd1",
        "v1-finetune.yaml": "sd1",
        "v1-inpainting-inference.yaml": "sd1",
        "v2-inference.yaml": "sd2",
        "v2-inference-v.yaml": "sd2",
        "v2-inpainting-inference.yaml": "sd2",
        "sd_xl_base.yaml": "sdxl",
        "sd_xl_refiner.yaml": "sdxl_refiner",
    }.items()
}
"""The yamls that come with the models' own code, by name: command lines name them, and the code
is seldom there."""


def find_yaml(path: Path, given: str | Path | None = None) -> LdmYaml | None:
    """The yaml that was given, or what its known name stands for, or the one beside a checkpoint,
    or ``None``."""
    if given is not None:
        known = KNOWN.get(Path(given).name)
        if known and not Path(given).exists():
            return known
        return read_yaml(Path(given), path)
    beside = path.with_suffix(".yaml")
    return read_yaml(beside, path) if folders.is_file(beside) else None


def read_yaml(path: Path, model: Path | None = None) -> LdmYaml:
    """Reads a latent diffusion or generative-models configuration.

    Raises:
        UserError: no such file, not YAML, or not a configuration of that kind.
    """
    params = _params(path)
    denoiser = params.get("unet_config") or params.get("network_config")
    unet = denoiser.get("params") if isinstance(denoiser, dict) else None
    if not isinstance(unet, dict):
        raise _not_of_this_kind(path)
    check(params, _PARAMS, path)
    check(unet, _UNET, path)
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
        text_folders=tuple(_text_folder(c, path, model) for c in _text_configs(params, path)),
        unet=unet,
    )


def text_config(folder: Path | None) -> dict[str, Any] | None:
    """The ``config.json`` of a text encoder's folder; ``None`` without a folder.

    Raises:
        UserError: it is damaged.
    """
    if folder is None:
        return None
    config = reading.read_json(folder / "config.json")
    nested = config.get("text_config")
    config = nested if isinstance(nested, dict) else config
    check(config, TEXT, folder / "config.json")
    return config


def _params(path: Path) -> dict[str, Any]:
    """``model.params`` of a yaml. Raises ``UserError``."""
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    text = folders.read_text(path, LONGEST)
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # A few lines of references to references can stand for terabytes.
                raise UserError("this yaml uses references (*name); write them out", where=path)
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise UserError("this yaml is nested too deep", where=path)
        # Interpolations (${…}) stay texts: nothing of this machine gets in.
        loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"this yaml cannot be read ({line})", where=path) from error
    model = loaded.get("model") if isinstance(loaded, dict) else None
    params = model.get("params") if isinstance(model, dict) else None
    if not isinstance(params, dict):
        raise _not_of_this_kind(path)
    return params


def _not_of_this_kind(path: Path) -> UserError:
    return UserError(
        "this yaml is not a Stable Diffusion configuration (model.params.unet_config)", where=path
    )


def _prediction(params: Mapping[str, Any]) -> str:
    if params.get("parameterization") == "v":
        return "v_prediction"
    scaling = _inside(params, "denoiser_config", "params", "scaling_config").get("target", "")
    return "v_prediction" if str(scaling).rpartition(".")[2].startswith("V") else "epsilon"


def _inside(value: Any, *keys: str) -> Mapping[str, Any]:
    """What lies under keys in one another; nothing where one is not there or no mapping."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _text_configs(params: Mapping[str, Any], path: Path) -> list[Mapping[str, Any]]:
    """What the yaml says of each text encoder. Raises ``UserError`` where that is no mapping."""
    found = params.get("cond_stage_config")
    configs = (
        [found] if found else _inside(params, "conditioner_config", "params").get("emb_models", [])
    )
    if not isinstance(configs, list) or not all(
        isinstance(config, dict) and isinstance(config.get("params") or {}, dict)
        for config in configs
    ):
        raise UserError("the text encoder's configuration must be a mapping", where=path)
    if found:
        return configs
    return [config for config in configs if "CLIPEmbedder" in str(config.get("target", ""))]


def _text_folder(config: Mapping[str, Any], yaml: Path, model: Path | None) -> Path | None:
    """The folder that ``version`` names; when the file was moved, the one of its name beside it.

    A yaml comes from others: what it names on another machine (``//server/…``) is not looked at.
    """
    version = (config.get("params") or {}).get("version")
    if version is None:
        return None
    if not isinstance(version, str):
        raise UserError("version must be the name of a text encoder", where=yaml)
    slashes = version.replace("\\", "/").rstrip("/")
    name = slashes.rpartition("/")[2]
    if not name or "\0" in name or name in (".", ".."):
        return None
    places = [] if slashes.startswith("//") else [Path(version), yaml.parent / version]
    places.append(yaml.parent / name)
    if model is not None:
        places.append(model.parent / name)
    return next((place for place in places if folders.is_file(place / "config.json")), None)
