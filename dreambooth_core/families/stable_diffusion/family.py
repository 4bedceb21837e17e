"""Stable Diffusion 1, 2 (Rombach et al. 2022) and XL (Podell et al. 2023): a UNet and CLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreambooth_core.devices import send
from dreambooth_core.errors import Unsupported
from dreambooth_core.families.base import Conditioning, Family, SizeInfo
from dreambooth_core.families.clip_tokenizers import load_tokenizers
from dreambooth_core.families.components import Components, Configs, Loaded
from dreambooth_core.families.stable_diffusion.build import build, empty
from dreambooth_core.families.stable_diffusion.folder import write_folder
from dreambooth_core.families.stable_diffusion.scheduler import FLOW_SIGMAS, with_scheduler
from dreambooth_core.families.stable_diffusion.single_write import write_single_file
from dreambooth_core.families.text import encode_chunks, tokenise
from dreambooth_core.formats.checkpoints.networks import component_of
from dreambooth_core.formats.checkpoints.parts import FLOW, ModelParts
from dreambooth_core.memory.models import training_step
from dreambooth_core.objective.diffusion import Diffusion, alphas_of
from dreambooth_core.objective.flow import STEPS, Flow
from dreambooth_core.objective.objective import Objective
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.objective.shift import FlowDefaults

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
}
FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "dpm++": ("DPMSolverMultistepScheduler", {"solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""For a UNet of rectified flow, where DPM-Solver++ of the first order is Euler's method; the others
have no such form. diffusers' pipelines of Stable Diffusion do not take its FlowMatchEuler."""


class UNetFamily(Family):
    """What the families with a UNet and CLIP text encoders share."""

    denoiser: ClassVar[str] = "unet"
    pipelines: ClassVar[tuple[str, ...]] = ()
    pipeline: ClassVar[str]
    """With which the names of diffusers' pipelines begin."""
    is_normed: ClassVar[bool] = True
    """Whether the text goes through the encoder's last norm, from the last layer on; else it is
    from the one before, and beside it stands the pooled one."""
    size_step: ClassVar[int] = 1  # of latent cells
    schedulers = SCHEDULERS
    reads_in_fp32: ClassVar[bool] = True
    # diffusers says the transformer blocks alone; most of SD 1's weights are in these.
    block_classes: ClassVar[tuple[str, ...]] = ("ResnetBlock2D", "Downsample2D", "Upsample2D")
    # The layers that the hosts know from kohya's sd-scripts: the transformer blocks' linear
    # layers, and for `all` the residual blocks, down- and upsamplers. The first and last
    # convolution and the time embedding stay as they are, since no host maps them.
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn[12]\.(to_q|to_v)$",
        "attention": r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.attentions\.\d+\.(transformer_blocks\.|proj_in$|proj_out$)",
        "all": r"\.(attentions|resnets|downsamplers|upsamplers)\.",
    }

    def load(self, path: Path, stored: ModelParts | None, *, weights: bool) -> Loaded:
        if stored is None:
            raise ValueError("recognising a base of this family opens its tensors")
        latent = stored.components["vae"].config.get("latent_channels", 4)
        channels = stored.components["unet"].config.get("in_channels", latent)
        if channels not in (latent, 2 * latent + 1):  # it wants a depth map, or an image to edit
            raise Unsupported(
                f"a UNet with {channels} input channels",
                where=f"base.model: {path}",
                do="It can only be converted.",
            )
        models = build(stored, dtype=torch.float32 if weights else None)
        kind = "flow" if stored.prediction_type == FLOW else stored.prediction_type
        return Loaded(models, stored.scheduler, kind)

    def load_tokenizers(self, path: Path, configs: Configs) -> list[Any]:
        texts = [dict(configs[name]) for name in self.text_encoders]
        return load_tokenizers(self.name, path if path.is_dir() else None, texts)

    def empty(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        return empty(name, config)

    def write_folder(
        self,
        parts: Components,
        folder: Path,
        dtype: torch.dtype,
        metadata: Mapping[str, str],
        *,
        scheduler: str | None = None,
        extras: str = "all",
    ) -> None:
        stored = self._stored(parts, metadata)
        if scheduler:
            stored.scheduler = with_scheduler(stored.scheduler, scheduler)
        write_folder(stored, folder, dtype=dtype, extras=extras)

    @property
    def has_host_file(self) -> bool:
        return True

    def write_file(
        self, parts: Components, file: Path, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> Path | None:
        stored = self._stored(parts, metadata)
        return write_single_file(stored, file, dtype=dtype, metadata=dict(metadata)).path

    def _stored(self, parts: Components, metadata: Mapping[str, str]) -> ModelParts:
        models = {**parts.models, "vae": parts.vae}
        return ModelParts(
            family=self.name,
            components={name: component_of(name, model) for name, model in models.items()},
            scheduler=parts.scheduler_config,
            metadata=dict(metadata),
        )

    def native_size(self, configs: Configs) -> int:
        size = configs["unet"].get("sample_size") or 64
        edge = max(size) if isinstance(size, (list, tuple)) else size
        return int(edge) * self.latent_scale(configs["vae"])

    def is_inpainting(self, denoiser: Mapping[str, Any]) -> bool:
        return int(denoiser["in_channels"]) == 9

    def stack(
        self, items: Sequence[Conditioning], empty: Callable[[], Conditioning]
    ) -> Conditioning:
        """Shorter prompts are lengthened with chunks of the empty prompt, as both hosts do."""
        longest = max(item.embeds.shape[1] for item in items)
        if any(item.embeds.shape[1] != longest for item in items):
            filler = empty()
            items = [item.padded(longest, filler) for item in items]
        return Conditioning.joined(items)

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        hidden, pooled = [], None
        skip = parts.clip_skip - self.is_normed
        for tokenizer, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True):
            ids = tokenise(
                tokenizer,
                prompts,
                max_chunks=parts.max_prompt_chunks,
                expansions=parts.expansions,
            )
            embeds, pooled = encode_chunks(encoder, ids, skip=skip, normalise=self.is_normed)
            hidden.append(embeds)
        return Conditioning(torch.cat(hidden, dim=-1), None if self.is_normed else pooled)

    def pipeline_class(self, parts: Components) -> type[Any]:
        import diffusers

        kind = f"{self.pipeline}{'Inpaint' if parts.is_inpainting else ''}Pipeline"
        found: type[Any] = getattr(diffusers, kind)
        return found

    def objective(self, options: ObjectiveOptions, parts: Components) -> Objective:
        if parts.prediction_type == "flow":
            # The static shift of a base's scheduler acts on training too, as in other families.
            factor = float(parts.scheduler_config.get("flow_shift") or 1.0)
            return Flow(options, FlowDefaults(shift="static", factor=factor, patch=1))
        return Diffusion(options, alphas_of(parts.scheduler_config), parts.prediction_type)

    def middle_time(self, parts: Components) -> float:
        return 0.5 if parts.prediction_type == "flow" else 500

    def added_conditions(
        self, parts: Components, conditioning: Conditioning, sizes: Sequence[SizeInfo]
    ) -> dict[str, Tensor] | None:
        """What the UNet takes besides the text; nothing in most families."""
        return None

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        if inpainting is not None:
            noisy = torch.cat([noisy, inpainting.to(noisy)], dim=1)
        if parts.prediction_type == "flow":
            timesteps = timesteps * STEPS
        output: Tensor = parts.denoiser(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning.embeds,
            added_cond_kwargs=self.added_conditions(parts, conditioning, sizes),
            return_dict=False,
        )[0]
        return output

    def scheduler(self, parts: Components, name: str) -> tuple[str, dict[str, Any]]:
        if parts.prediction_type == "flow":
            own = {k: v for k, v in parts.scheduler_config.items() if not k.startswith("_")}
            kind, changes = FLOW_SCHEDULERS.get(name, FLOW_SCHEDULERS["euler"])
            return kind, {**own, **changes, **FLOW_SIGMAS}
        kind, config = super().scheduler(parts, name)
        return kind, {**config, "prediction_type": parts.prediction_type}

    def own_scheduler(self, parts: Components) -> tuple[str, Mapping[str, Any]]:
        """What the base names, where it is one of ours; else DDIM."""
        named = parts.scheduler_config.get("_class_name")
        return next((s for s in SCHEDULERS.values() if s[0] == named), SCHEDULERS["ddim"])

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        count = len(prompts)
        parameter = next(parts.denoiser.parameters())
        both = self.encode(parts, [*prompts, *[negative] * count])
        both = both.to(device=parameter.device, dtype=parameter.dtype)
        found = {
            "prompt_embeds": both.embeds[:count],
            "negative_prompt_embeds": both.embeds[count:],
            "guidance_scale": guidance,
        }
        if both.pooled is not None:
            found["pooled_prompt_embeds"] = both.pooled[:count]
            found["negative_pooled_prompt_embeds"] = both.pooled[count:]
        return found

    def meta_step(
        self, parts: Components, texts: Mapping[str, nn.Module] | None, **size: Any
    ) -> Callable[[], Tensor]:
        return training_step(parts.denoiser, texts, latent_scale=parts.latent_scale, **size)


class SingleEncoder(UNetFamily):
    """What the families with one text encoder share."""

    pipeline: ClassVar[str] = "StableDiffusion"
    is_openclip: ClassVar[bool]
    """Its text tower uses the exact GELU, OpenAI's CLIP the quick one."""

    def matches(self, configs: Configs) -> bool:
        texts = [name for name in configs if name.startswith("text_encoder")]
        if "unet" not in configs or texts != ["text_encoder"]:
            return False
        return (configs["text_encoder"].get("hidden_act") == "gelu") is self.is_openclip

    def pipeline_modules(self, parts: Components) -> dict[str, Any]:
        return {
            **super().pipeline_modules(parts),
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }


class StableDiffusion1(SingleEncoder):
    """SD 1.x and its inpainting models: CLIP ViT-L with quick GELU."""

    name: ClassVar[str] = "sd1"
    label: ClassVar[str] = "Stable Diffusion 1"
    is_openclip: ClassVar[bool] = False


class StableDiffusion2(SingleEncoder):
    """SD 2.x: OpenCLIP ViT-H, of which diffusers keeps the layers up to the penultimate."""

    name: ClassVar[str] = "sd2"
    label: ClassVar[str] = "Stable Diffusion 2"
    is_openclip: ClassVar[bool] = True


class StableDiffusionXL(UNetFamily):
    """SDXL: CLIP ViT-L and OpenCLIP ViT-bigG side by side, penultimate layers, no final norm."""

    name: ClassVar[str] = "sdxl"
    label: ClassVar[str] = "Stable Diffusion XL"
    pipeline: ClassVar[str] = "StableDiffusionXL"
    is_normed: ClassVar[bool] = False
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2")

    def matches(self, configs: Configs) -> bool:
        unet = configs.get("unet", {})
        both = all(name in configs for name in self.text_encoders)
        return both and unet.get("addition_embed_type") == "text_time"

    def added_conditions(
        self, parts: Components, conditioning: Conditioning, sizes: Sequence[SizeInfo]
    ) -> dict[str, Tensor] | None:
        numbers = [[*size.original, *size.crop_top_left, *size.target] for size in sizes]
        embeds = conditioning.embeds
        time_ids = send(torch.tensor(numbers, dtype=embeds.dtype), embeds.device)
        if conditioning.pooled is None:
            raise ValueError("SDXL needs the pooled output of its second text encoder")
        return {"text_embeds": conditioning.pooled, "time_ids": time_ids}
