"""Flux.2 (Black Forest Labs 2025): double and single blocks, folded latents; Klein and dev."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components, Configs
from dreambooth_core.families.flux import NORMS, SCALES, SHIFT_BY_SIZE, blocks_of
from dreambooth_core.families.host_files.record import HostFiles, Tensors, axes, flow_scheduler
from dreambooth_core.families.names.flux2 import NAMES
from dreambooth_core.families.transformer import Call, TransformerFamily
from dreambooth_core.objective.shift import FlowDefaults

AXES = (32, 32, 32, 32)
"""Rotary axes of a head of 128."""

_TOLD = "time_guidance_embed.guidance_embedder"


def _config(tensors: Tensors) -> dict[str, Any]:
    found = blocks_of(tensors)
    embedder = "time_guidance_embed.timestep_embedder.linear_1.weight"
    width = len(tensors["x_embedder.weight"])
    return {
        **found,
        "_class_name": "Flux2Transformer2DModel",
        "axes_dims_rope": axes(AXES, found["attention_head_dim"]),
        "mlp_ratio": len(tensors["transformer_blocks.0.ff.linear_in.weight"]) / width / 2,
        "timestep_guidance_channels": tensors[embedder].shape[1],
        "guidance_embeds": f"{_TOLD}.linear_1.weight" in tensors,
    }


def _settings(file: str) -> dict[str, Any]:
    name = file.lower()
    return {"is_distilled": "klein" in name and "base" not in name}


FILES = HostFiles(
    names=NAMES,
    keys=("double_blocks.0.img_attn.qkv.weight", "double_stream_modulation_img.lin.weight"),
    without=("guidance_in.in_layer.weight",),  # Flux.2 dev, which reads prompts with Mistral
    config=_config,
    scheduler=lambda file, config: flow_scheduler(**SHIFT_BY_SIZE),
    norms=NORMS,
    scales=SCALES,
    texts={"text_encoder": "Qwen3 (4B of Klein 4B, 8B of Klein 9B)"},
    text_widths={"text_encoder": ("joint_attention_dim", 3)},
    settings=_settings,
)

DEV_FILES = replace(
    FILES,
    keys=(*FILES.keys, *FILES.without),
    without=(),
    texts={"text_encoder": "Mistral Small 3"},
    settings=lambda file: {},
)


class FoldedLatents(TransformerFamily):
    """What families share whose autoencoder is Flux.2's: two by two cells of its latents make one,
    and each of the channels that come of it has a mean and a deviation of its own."""

    flow: ClassVar[FlowDefaults] = FlowDefaults(patch=1)  # folded latents are tokens
    samples_latents: ClassVar[bool] = False

    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, ...]:
        channels, rows, columns = super().latent_shape(configs, height, width)
        return (4 * channels, rows // 2, columns // 2)

    def scaled(self, parts: Components, latents: Tensor) -> Tensor:
        """Folded two by two, ``[n, 4 * channels, height / 16, width / 16]``, then normalised."""
        mean, deviation = _statistics(parts.vae, latents)
        return (self.folded(latents) - mean) / deviation

    def unscaled(self, parts: Components, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(parts.vae, latents)
        return self.unfolded(latents * deviation + mean)

    def latents_of(self, parts: Components, made: Tensor, height: int, width: int) -> Tensor:
        return cells(made, height // 16, width // 16)

    def folded(self, latents: Tensor) -> Tensor:
        """Of the numbers of one cell the channel varies slowest, then the row."""
        return torch.nn.functional.pixel_unshuffle(latents, 2)

    def unfolded(self, latents: Tensor) -> Tensor:
        """The reverse of :meth:`folded`."""
        return torch.nn.functional.pixel_shuffle(latents, 2)


class Flux2(FoldedLatents):
    """What Klein and dev share: all but who reads the prompt and how guidance is had."""

    names: ClassVar[str] = "flux2"
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn\.(to_q|to_v|to_qkv_mlp_proj)$",
        "attention": r"\.attn\.(to_q|to_k|to_v|to_out\.0|to_qkv_mlp_proj|to_out)$",
        "transformer": r"^(single_)?transformer_blocks\.",
        "all": r"^(single_)?transformer_blocks\.|_modulation",
    }

    def matches(self, configs: Configs) -> bool:
        kind = self.classes["text_encoder"].rpartition(".")[2]
        reads = configs.get("text_encoder", {}).get("architectures") or [kind]
        return super().matches(configs) and reads == [kind]

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(self.encoded(parts, prompts)[0])

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        count, _, height, width = noisy.shape
        tokens = text.embeds.shape[1]
        return {
            "hidden_states": noisy.flatten(2).transpose(1, 2),
            "timestep": times,
            "guidance": self.told(parts, noisy),
            "encoder_hidden_states": text.embeds,
            "txt_ids": _places(1, 1, tokens, noisy.device).expand(count, -1, -1),
            "img_ids": _places(height, width, 1, noisy.device).expand(count, -1, -1),
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        return cells(answer[:, : height * width], height, width)


class Flux2Klein(Flux2):
    """Klein 4B and 9B, the base models and those distilled to few steps: Qwen3 reads."""

    name: ClassVar[str] = "flux2"
    label: ClassVar[str] = "Flux.2 Klein"
    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.Flux2Transformer2DModel",
        "vae": "diffusers.AutoencoderKLFlux2",
        "text_encoder": "transformers.Qwen3ForCausalLM",
    }
    files: ClassVar[HostFiles | None] = FILES
    marks: ClassVar[tuple[str, ...]] = ("<think>", "</think>")

    distilled: ClassVar[str] = (
        "this is a Klein distilled to few steps: the longer it is trained the more of that "
        "it forgets. Better is to train on the Klein base model of the same size and use "
        "the result on this one."
    )

    def latents_of(self, parts: Components, made: Tensor, height: int, width: int) -> Tensor:
        return self.scaled(parts, made)

    def unwanted(self, parts: Components, negative: str, count: int) -> Conditioning:
        return Conditioning(self.encode(parts, [negative]).embeds.expand(count, -1, -1))


class Flux2Dev(Flux2):
    """Dev: Mistral reads, and the denoiser is told the guidance, which has no negative prompt."""

    name: ClassVar[str] = "flux2_dev"
    label: ClassVar[str] = "Flux.2 dev"
    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.Flux2Transformer2DModel",
        "vae": "diffusers.AutoencoderKLFlux2",
        "text_encoder": "transformers.Mistral3ForConditionalGeneration",
    }
    files: ClassVar[HostFiles | None] = DEV_FILES
    negatives: ClassVar[bool] = False


def cells(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """``[n, rows * columns, channels]`` as ``[n, channels, rows, columns]``."""
    return tokens.transpose(1, 2).unflatten(2, (rows, columns))


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of folded latents, ``[1, channels, 1, 1]``."""
    mean = vae.bn.running_mean.view(1, -1, 1, 1)
    deviation = (vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps).sqrt()
    return mean.to(like), deviation.to(like)


def _places(rows: int, columns: int, tokens: int, device: torch.device) -> Tensor:
    """(time, row, column, number) of each token, ``[1, rows * columns * tokens, 4]``."""
    axes = [torch.arange(size, device=device) for size in (1, rows, columns, tokens)]
    return torch.cartesian_prod(*axes)[None]
