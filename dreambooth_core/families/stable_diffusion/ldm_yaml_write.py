"""Writes the ``.yaml`` that A1111 and Forge read beside a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreambooth_core.errors import Unsupported
from dreambooth_core.families.stable_diffusion import unet, unet_config, vae
from dreambooth_core.families.stable_diffusion.parts import is_inpainting
from dreambooth_core.families.stable_diffusion.stock import is_stock
from dreambooth_core.formats.checkpoints.parts import FLOW, ModelParts

UNET = "ldm.modules.diffusionmodules.openaimodel.UNetModel"
ANY_WIDTHS = "dreambooth_reduced.UNetModel"
"""The same with ``channel_mult`` that need not be whole numbers. Our WebUI extension brings it;
without that the host says that there is no module of this name."""


def needs_yaml(parts: ModelParts) -> bool:
    """Whether A1111 cannot tell what this model is from its weights."""
    if parts.prediction_type == FLOW:  # which it cannot run at all
        return False
    if parts.family == "sd2" or parts.prediction_type != "epsilon":
        return True
    return not is_stock(parts)


def yaml_text(parts: ModelParts, text_folders: dict[str, str]) -> str:
    """The yaml of a model.

    Args:
        text_folders: for reduced text encoders, the absolute path of the folder that holds their
            ``config.json`` and tokenizer, by component name.

    Raises:
        Unsupported: the sizes cannot be said in this form, or it is of rectified flow.
    """
    if parts.prediction_type == FLOW:
        raise Unsupported("rectified flow")
    from omegaconf import OmegaConf

    xl = parts.family.startswith("sdxl")
    model = (
        _generative_models(parts, text_folders) if xl else _latent_diffusion(parts, text_folders)
    )
    return OmegaConf.to_yaml(OmegaConf.create({"model": model}))


def _latent_diffusion(parts: ModelParts, text_folders: dict[str, str]) -> dict[str, Any]:
    kind = "LatentInpaintDiffusion" if is_inpainting(parts) else "LatentDiffusion"
    params: dict[str, Any] = {
        "parameterization": "v" if parts.prediction_type == "v_prediction" else "eps",
        "linear_start": parts.scheduler.get("beta_start", 0.00085),
        "linear_end": parts.scheduler.get("beta_end", 0.012),
        "num_timesteps_cond": 1,
        "log_every_t": 200,
        "timesteps": parts.scheduler.get("num_train_timesteps", 1000),
        "first_stage_key": "jpg",
        "cond_stage_key": "txt",
        "image_size": 64,
        "channels": 4,
        "cond_stage_trainable": False,
        "conditioning_key": "hybrid" if is_inpainting(parts) else "crossattn",
        "monitor": "val/loss_simple_ema",
        "scale_factor": parts.components["vae"].config.get("scaling_factor", 0.18215),
        "use_ema": False,
    }
    if is_inpainting(parts):
        params["finetune_keys"] = None
    unet_params = {"image_size": 32, **_unet_params(parts), "legacy": False}
    whole = all(isinstance(multiple, int) for multiple in unet_params["channel_mult"])
    params["unet_config"] = _made(UNET if whole else ANY_WIDTHS, **unet_params)
    params["first_stage_config"] = _first_stage(parts, "ldm.models.autoencoder.AutoencoderKL")
    params["cond_stage_config"] = _text(parts, text_folders)
    return {"base_learning_rate": 1e-4, **_made(f"ldm.models.diffusion.ddpm.{kind}", **params)}


def _made(target: str, **params: Any) -> dict[str, Any]:
    """How these yamls name a class and what it is made with."""
    return {"target": target, "params": params}


def _text(parts: ModelParts, text_folders: dict[str, str]) -> dict[str, Any]:
    where = "ldm.modules.encoders.modules"
    if parts.family == "sd2":
        return _made(f"{where}.FrozenOpenCLIPEmbedder", freeze=True, layer="penultimate")
    if "text_encoder" not in text_folders:
        return {"target": f"{where}.FrozenCLIPEmbedder"}
    positions = parts.components["text_encoder"].config.get("max_position_embeddings", 77)
    folder = text_folders["text_encoder"]
    return _made(f"{where}.FrozenCLIPEmbedder", version=folder, max_length=positions)


def _generative_models(parts: ModelParts, text_folders: dict[str, str]) -> dict[str, Any]:
    modules = "sgm.modules.diffusionmodules"
    scaling = "VScaling" if parts.prediction_type == "v_prediction" else "EpsScaling"
    unet_params = {
        "adm_in_channels": unet.plan_from_config(parts.components["unet"].config).added,
        "num_classes": "sequential",
        **_unet_params(parts),
        "spatial_transformer_attn_type": "softmax-xformers",
    }
    return _made(
        "sgm.models.diffusion.DiffusionEngine",
        scale_factor=parts.components["vae"].config.get("scaling_factor", 0.13025),
        disable_first_stage_autocast=True,
        denoiser_config=_made(
            f"{modules}.denoiser.DiscreteDenoiser",
            num_idx=parts.scheduler.get("num_train_timesteps", 1000),
            weighting_config={"target": f"{modules}.denoiser_weighting.EpsWeighting"},
            scaling_config={"target": f"{modules}.denoiser_scaling.{scaling}"},
            discretization_config={"target": f"{modules}.discretizer.LegacyDDPMDiscretization"},
        ),
        network_config=_made(f"{modules}.openaimodel.UNetModel", **unet_params),
        conditioner_config=_made(
            "sgm.modules.GeneralConditioner", emb_models=_embedders(parts, text_folders)
        ),
        first_stage_config=_first_stage(
            parts, "sgm.models.autoencoder.AutoencoderKLInferenceWrapper"
        ),
    )


def _embedders(parts: ModelParts, text_folders: dict[str, str]) -> list[dict[str, Any]]:
    def embedder(key: str, kind: str, **params: Any) -> dict[str, Any]:
        made = _made(f"sgm.modules.encoders.modules.{kind}", **params)
        return {"is_trainable": False, "input_key": key, **made}

    embedders = []
    if "text_encoder" in parts.components:
        layers = int(parts.components["text_encoder"].config["num_hidden_layers"])
        params: dict[str, Any] = {"layer": "hidden", "layer_idx": layers - 1}
        if "text_encoder" in text_folders:
            params["version"] = text_folders["text_encoder"]
        embedders.append(embedder("txt", "FrozenCLIPEmbedder", **params))
    embedders.append(
        embedder(
            "txt",
            "FrozenOpenCLIPEmbedder2",
            arch="ViT-bigG-14",
            version="laion2b_s39b_b160k",
            freeze=True,
            layer="penultimate",
            always_return_pooled=True,
            legacy=False,
        )
    )
    width = parts.components["unet"].config.get("addition_time_embed_dim") or 256
    last = "aesthetic_score" if parts.family == "sdxl_refiner" else "target_size_as_tuple"
    return embedders + [
        embedder(key, "ConcatTimestepEmbedderND", outdim=width)
        for key in ("original_size_as_tuple", "crop_coords_top_left", last)
    ]


def _unet_params(parts: ModelParts) -> dict[str, Any]:
    config = parts.components["unet"].config
    plan = unet.plan_from_config(config)
    heads = unet_config.heads_from_config(config)
    blocks = [len(level.down) for level in plan.levels]
    params: dict[str, Any] = {
        "use_checkpoint": True,
        "in_channels": plan.in_channels,
        "out_channels": plan.out_channels,
        "model_channels": plan.levels[0].channels,
        "attention_resolutions": [2**i for i, lvl in enumerate(plan.levels) if lvl.attends][::-1],
        "num_res_blocks": blocks[0] if len(set(blocks)) == 1 else blocks,
        "channel_mult": _multiples(
            [level.channels for level in plan.levels], whole=parts.family.startswith("sdxl")
        ),
        **_heads(plan, heads, parts.family),
        "use_spatial_transformer": True,
        "use_linear_in_transformer": plan.linear,
        "transformer_depth": _depth(plan),
        "context_dim": plan.context,
    }
    if plan.middle is None:
        raise Unsupported("a UNet without a middle block")
    return params


def _heads(plan: unet.UNetPlan, heads: tuple[int, ...], family: str) -> dict[str, int]:
    width = unet_config.head_width(plan, heads)
    if len(set(heads)) == 1 and (family == "sd1" or width is None):
        return {"num_heads": heads[0]}
    if width is not None:
        return {"num_head_channels": width}
    raise Unsupported("attention heads that are neither one number nor one width at all levels")


def _depth(plan: unet.UNetPlan) -> int | list[int]:
    depths: list[int] = []
    for i, level in enumerate(plan.levels):
        used = set(level.down + level.up)
        if len(used) > 1:
            raise Unsupported("transformer depths that differ within a level")
        filler = plan.middle if i == len(plan.levels) - 1 else 1
        depths.append(used.pop() or filler or 1)
    if depths[-1] != plan.middle:
        raise Unsupported("a middle block of another depth than the last level")
    return depths[0] if len(set(depths)) == 1 else depths


def _first_stage(parts: ModelParts, target: str) -> dict[str, Any]:
    plan = vae.plan_from_config(parts.components["vae"].config)
    return _made(
        target,
        embed_dim=plan.latent,
        monitor="val/rec_loss",
        ddconfig={
            "double_z": True,
            "z_channels": plan.latent,
            "resolution": 256,
            "in_channels": plan.in_channels,
            "out_ch": plan.out_channels,
            "ch": plan.channels[0],
            "ch_mult": _multiples(list(plan.channels)),
            "num_res_blocks": plan.blocks,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        lossconfig={"target": "torch.nn.Identity"},
    )


def _multiples(channels: Sequence[int], *, whole: bool = True) -> list[int | float]:
    if whole and any(c % channels[0] for c in channels):
        raise Unsupported(f"channels {list(channels)} that are not multiples of the first")
    return [c / channels[0] if c % channels[0] else c // channels[0] for c in channels]
