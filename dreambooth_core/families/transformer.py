"""What the rectified-flow families share: networks and pipelines as diffusers keeps them.

Each network lies in a folder of its own and is read by the library that made it; prompts are
encoded by the pipeline's own ``encode_prompt``, so that what is trained is what is sampled.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreambooth_core.disk import replacing_folder, write_json
from dreambooth_core.disk.reading import read_json
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Conditioning, Family, SizeInfo
from dreambooth_core.families.components import Components, Configs, Loaded, config_of
from dreambooth_core.families.host_files.read import SplitParts, fill
from dreambooth_core.families.host_files.texts import hosts_file
from dreambooth_core.formats.checkpoints.folder_layout import read_weights
from dreambooth_core.formats.checkpoints.networks import (
    UNREADABLE,
    UNRUN,
    in_precision,
    without_initial_values,
)
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.formats.folders import index_of, read_scheduler
from dreambooth_core.formats.privacy import cleaned
from dreambooth_core.formats.storage import write_tensors
from dreambooth_core.objective.flow import Flow
from dreambooth_core.objective.objective import Objective
from dreambooth_core.objective.options import ObjectiveOptions
from dreambooth_core.objective.shift import FlowDefaults

JOINT_ATTENTION = r"to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out"
"""Layers of an attention of two streams, image and text, in diffusers' names."""
FEED_FORWARD = r"ff(_context)?\.net\.(0\.proj|2)"
"""Those of the two streams' feed-forward networks."""


NO_SETTINGS = ("scheduler", "guider")
"""Parts of a pipeline that are no network and no tokenizer."""


Call = dict[str, Any]
"""What a denoiser or a pipeline is called with."""


class TransformerFamily(Family):
    """A denoiser of transformer blocks that is trained by rectified flow."""

    flow: ClassVar[FlowDefaults] = FlowDefaults()
    """What ``auto`` means in the ``objective`` section."""
    trains_text: ClassVar[bool] = False
    size_step: ClassVar[int] = 16
    native: ClassVar[int] = 1024
    """The side in pixels that its makers trained on last."""
    most_tokens: ClassVar[int] = 512
    """Tokens of a prompt that are read; the rest is cut."""
    # Where little is to be had and much is lost: what stands before the first block and behind the
    # last, and whatever scales the rest.
    whole_layers: ClassVar[str] = (
        r"(^|\.)\w*(embed|modulation|norm|adaLN|time_|guidance)|^(proj_out|img_in|txt_in|final_layer)"
    )
    context: ClassVar[str] = "joint_attention_dim"
    """The key of the denoiser's configuration that has the width of its text …"""
    pooled: ClassVar[str] = ""
    """… and the one that has that of the pooled text, where it takes one."""
    negatives: ClassVar[bool] = True
    """Whether its pipeline takes a negative prompt."""
    guidance_from: ClassVar[float] = 0.0
    """How much less its pipeline counts guidance than everybody else, whose 1 is none."""
    samples_latents: ClassVar[bool] = True
    """Whether its makers train on latents drawn from the autoencoder's distribution, or on its
    mode."""

    def matches(self, configs: Configs) -> bool:
        kind = self.classes[self.denoiser].rpartition(".")[2]
        return configs.get(self.denoiser, {}).get("_class_name") == kind

    # Reading and writing

    def load(self, path: Path, stored: ModelParts | None, *, weights: bool) -> Loaded:
        models = {}
        for name in self.networks:
            if not isinstance(stored, SplitParts):
                models[name] = self._network(path / name, name, weights)
                continue
            models[name] = self.empty(name, stored.components[name].config, buffers=weights)
            if weights:
                fill(models[name], stored.readers[name]())
        if weights:
            models["vae"].to(torch.float32)
        if isinstance(stored, SplitParts):
            return Loaded(models, stored.scheduler, "flow", stored.settings)
        self.require_part(path, "scheduler")
        scheduler = path / "scheduler" / "scheduler_config.json"
        index = read_json(index_of(path))
        settings = {
            key: value
            for key, value in index.items()
            if not key.startswith("_") and key not in (*models, *self.tokenizers, *NO_SETTINGS)
        }
        return Loaded(models, read_scheduler(scheduler), "flow", settings)

    def _network(self, folder: Path, name: str, weights: bool) -> nn.Module:
        kind = self._class(name)
        config = read_json(folder / "config.json")
        # Text encoders are told by the kind of language model: the same one is saved under the
        # names of several classes, with its head and without.
        is_text = self._is_text(name)
        found = config.get("model_type" if is_text else "_class_name")
        wanted = kind.config_class.model_type if is_text else kind.__name__
        if found is not None and found != wanted:
            raise UserError(
                f"the {name.replace('_', ' ')} is of another model ({str(found)[:60]}; "
                f"{self.label} has {wanted})",
                where=f"base.model: {folder}",
                do=f"Put the folder {name} of the same model there.",
            )
        # Refuses what is cut and shards that do not agree, also where no weight is wanted yet.
        tensors = read_weights(folder)
        if not weights:
            return self.empty(name, config)
        stored = next(t for t in tensors.values() if t.is_floating_point())
        more = {} if is_text else {"low_cpu_mem_usage": True}
        with readable(folder):
            model: nn.Module = kind.from_pretrained(
                folder, torch_dtype=stored.dtype, local_files_only=True, **more
            )
        return model

    def _is_text(self, name: str) -> bool:
        """Whether transformers reads it, and not diffusers."""
        return self.classes[name].startswith("transformers.")

    def _class(self, name: str) -> Any:
        library, _, kind = self.classes[name].rpartition(".")
        return getattr(importlib.import_module(library), kind)

    def load_tokenizers(self, path: Path, configs: Configs) -> list[Any]:
        from transformers import AutoTokenizer

        found = []
        for name in self.tokenizers:
            self.require_part(path, name)
            with readable(path / name):
                found.append(AutoTokenizer.from_pretrained(path / name, local_files_only=True))
        return found

    def empty(self, name: str, config: Mapping[str, Any], *, buffers: bool = False) -> nn.Module:
        """Without data, on the meta device; with ``buffers`` what is computed and not read has
        its values."""
        from accelerate import init_empty_weights

        kind = self._class(name)
        values = {k: v for k, v in config.items() if not k.startswith("_") and k not in UNRUN}
        place = init_empty_weights(include_buffers=False) if buffers else torch.device("meta")
        with readable(name), place, without_initial_values():
            if self._is_text(name):
                made: nn.Module = kind(kind.config_class(**values))
            else:
                made = kind.from_config(values)
        return made

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
        import diffusers

        models = {**parts.models, "vae": parts.vae, **parts.companions}
        own = parts.scheduler_config
        index: dict[str, Any] = {
            **parts.settings,
            "_class_name": self.pipelines[0],
            "_diffusers_version": diffusers.__version__,
            "scheduler": ["diffusers", str(own["_class_name"])],
        }
        names = ["model_index.json", "scheduler", *models, *self.tokenizers]
        with replacing_folder(folder, names) as part:
            for name, model in models.items():
                kind = type(model)
                index[name] = [kind.__module__.partition(".")[0], kind.__name__]
                is_text = self._is_text(name)
                stem = "model" if is_text else "diffusion_pytorch_model"
                tensors = in_precision(model.state_dict(), dtype)
                write_tensors(part / name / f"{stem}.safetensors", tensors, {"format": "pt"})
                config = config_of(model)
                config["architectures" if is_text else "_class_name"] = (
                    [kind.__name__] if is_text else kind.__name__
                )
                write_json(part / name / "config.json", cleaned(config))
            for name, tokenizer in zip(self.tokenizers, parts.tokenizers, strict=True):
                tokenizer.save_pretrained(part / name)
                index[name] = ["transformers", type(tokenizer).__name__]
            write_json(part / "scheduler" / "scheduler_config.json", cleaned(own))
            write_json(part / "model_index.json", index)

    def write_file(
        self, parts: Components, file: Path, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> Path | None:
        """Writes the denoiser alone, as hosts keep it in ``diffusion_models`` or ``unet``; their
        text encoders and autoencoder are the base's. So it is not the whole base: None."""
        if self.files is None:
            return None
        found = hosts_file(self, self.files, lambda name: parts.models[name].state_dict())
        architecture = self.files.names.architecture.removesuffix("/lora")
        own = {"modelspec.architecture": architecture} if architecture else {}
        write_tensors(file, in_precision(found, dtype), {"format": "pt", **own, **metadata})
        return None

    # Sizes

    def native_size(self, configs: Configs) -> int:
        return self.native

    def encode_pixels(self, parts: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = super().encode_pixels(parts, pixels)
        return mean, std if self.samples_latents else torch.zeros_like(std)

    # Text

    def text_pipeline(self, parts: Components) -> Any:
        """The family's pipeline, for its ``encode_prompt``."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        modules = {**self.pipeline_modules(parts), "scheduler": FlowMatchEulerDiscreteScheduler()}
        return self.pipeline_class(parts)(**modules)

    def text_device(self, parts: Components) -> torch.device:
        """Where prompts are encoded."""
        return next(parts.text_encoders[0].parameters()).device

    def encoded(self, parts: Components, prompts: Sequence[str], **more: Any) -> Any:
        """What the pipeline's ``encode_prompt`` makes of prompts."""
        return self.text_pipeline(parts).encode_prompt(
            list(prompts),
            device=self.text_device(parts),
            max_sequence_length=self.most_tokens,
            **more,
        )

    # Training and sampling

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """What the denoiser is called with."""
        raise NotImplementedError(f"{self.name} does not say how its denoiser is called")

    def told(self, parts: Components, noisy: Tensor) -> Tensor | None:
        """The guidance ``[batch]`` that a denoiser with an embedding of it is told."""
        if not parts.is_told_guidance:
            return None
        return torch.full((len(noisy),), parts.guidance, device=noisy.device)

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        """The denoiser's answer in the shape and the sign of the target."""
        return answer

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        given = self.inputs(parts, noisy, timesteps, conditioning)
        return self.answered(parts.denoiser(**given, return_dict=False)[0], noisy)

    def given(self, parts: Components, conditioning: Conditioning) -> dict[str, Any]:
        """Conditioning as the pipeline's call takes it."""
        named = {
            "prompt_embeds": conditioning.embeds,
            "pooled_prompt_embeds": conditioning.pooled,
            "prompt_attention_mask": conditioning.mask,
        }
        return {name: value for name, value in named.items() if value is not None}

    def unwanted(self, parts: Components, negative: str, count: int) -> Conditioning:
        """Conditioning of a negative prompt for as many images."""
        return self.encode(parts, [negative] * count)

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        found = self.given(parts, self.placed(parts, self.encode(parts, prompts)))
        if guidance > 1 and self.negatives:
            other = self.placed(parts, self.unwanted(parts, negative, len(prompts)))
            found |= {f"negative_{key}": value for key, value in self.given(parts, other).items()}
        return {**found, "guidance_scale": max(guidance - self.guidance_from, 0.0)}

    def pipeline_class(self, parts: Components) -> type[Any]:
        """The first of ``pipelines``: the others are names that it had before."""
        found: type[Any] = getattr(importlib.import_module("diffusers"), self.pipelines[0])
        return found

    def pipeline_modules(self, parts: Components) -> dict[str, Any]:
        return {**super().pipeline_modules(parts), **parts.settings}

    def objective(self, options: ObjectiveOptions, parts: Components) -> Objective:
        """A static shift of the base's own scheduler acts on training too, one by resolution does
        not: so do diffusers' scripts, which draw from the scheduler's list as it was made."""
        own, defaults = parts.scheduler_config, self.flow
        if not own.get("use_dynamic_shifting") and own.get("shift", 1.0) != 1.0:
            defaults = replace(defaults, shift="static", factor=float(own["shift"]))
        return Flow(options, defaults)

    def middle_time(self, parts: Components) -> float:
        return 0.5

    def own_scheduler(self, parts: Components) -> tuple[str, Mapping[str, Any]]:
        return str(parts.scheduler_config["_class_name"]), {}

    def placed(self, parts: Components, conditioning: Conditioning) -> Conditioning:
        """Conditioning where the denoiser is, in its precision."""
        parameter = next(parts.denoiser.parameters())
        return conditioning.to(device=parameter.device, dtype=parameter.dtype)

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        """Conditioning of the longest prompts without values, on the meta device."""
        config = parts.denoiser.config
        shape = (batch, self.most_tokens, config[self.context])
        embeds = torch.empty(shape, dtype=dtype, device="meta")
        return Conditioning(
            embeds, embeds.new_empty(batch, config[self.pooled]) if self.pooled else None
        )

    def ready_for_meta(self, denoiser: Any) -> None:
        """Takes out of a denoiser what the meta device cannot do."""

    def meta_step(
        self,
        parts: Components,
        texts: Mapping[str, nn.Module] | None,
        *,
        batch: int,
        height: int,
        width: int,
        dtype: torch.dtype,
    ) -> Callable[[], Tensor]:
        shape = (batch, *self.latent_shape(parts.configs, height, width))
        self.ready_for_meta(parts.denoiser)

        def run() -> Tensor:
            noisy = torch.empty(shape, dtype=dtype, device="meta")
            times = torch.empty(batch, device="meta")
            found = self.predict(parts, noisy, times, self.blank(parts, batch, dtype), [])
            target = torch.empty_like(found, dtype=torch.float32)
            return (found.float() - target).square().flatten(1).mean()

        return run


@contextmanager
def readable(where: str | Path) -> Iterator[None]:
    """Turns what the libraries raise for damaged files into one line."""
    try:
        yield
    except UNREADABLE as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"this part cannot be read: {line}", where=where) from error
