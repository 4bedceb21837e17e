"""HiDream-I1 (HiDream 2025): two streams, then one; two CLIPs, T5 and every layer of Llama."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components, Configs
from dreambooth_core.families.flux import LATENTS
from dreambooth_core.families.host_files.record import (
    HostFiles,
    Tensors,
    axes,
    count,
    flow_scheduler,
)
from dreambooth_core.families.names.hidream import NAMES
from dreambooth_core.families.transformer import Call, TransformerFamily
from dreambooth_core.objective.shift import FlowDefaults

_ATTENTION = r"attn1\.(to_q|to_k|to_v|to_out)(_t)?"

HEAD = 128
"""Numbers of a head, which no shape tells."""
AXES = (64, 32, 32)
"""Rotary axes of a head of 128."""
MOST = [128, 128]
"""Cells of an image that is not square."""
LLAMA_LAYERS = 32
"""Of Llama; blocks beyond as many are given the last one again."""
TOKENS = 128


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["x_embedder.proj.weight"].shape
    double, single = (count(tensors, f"{kind}_stream_blocks.") for kind in ("double", "single"))
    block = "double_stream_blocks.0.block"
    t5 = tensors[f"caption_projection.{double + single}.linear.weight"].shape[1]
    llama = tensors["caption_projection.0.linear.weight"].shape[1]
    return {
        "_class_name": "HiDreamImageTransformer2DModel",
        "patch_size": 2,
        "in_channels": inputs // 4,
        "out_channels": len(tensors["final_layer.linear.weight"]) // 4,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": HEAD,
        "num_attention_heads": width // HEAD,
        "caption_channels": [t5, llama],
        "text_emb_dim": tensors["p_embedder.pooled_embedder.linear_1.weight"].shape[1],
        "num_routed_experts": count(tensors, f"{block}.ff_i.experts."),
        "num_activated_experts": 2,
        "axes_dims_rope": axes(AXES, HEAD),
        "max_resolution": MOST,
        "llama_layers": [min(i, LLAMA_LAYERS - 1) for i in range(double + single)],
    }


FILES = HostFiles(
    names=NAMES,
    keys=(
        "caption_projection.0.linear.weight",
        "double_stream_blocks.0.block.attn1.to_q_t.weight",
        "single_stream_blocks.0.block.ff_i.gate.weight",
    ),
    config=_config,
    scheduler=lambda file, config: flow_scheduler(shift=3.0),
    texts={
        "text_encoder": "CLIP-L with 248 tokens",
        "text_encoder_2": "CLIP-G with 248 tokens",
        "text_encoder_3": "T5-XXL",
        "text_encoder_4": "Llama 3.1 8B Instruct",
    },
    text_widths={
        "text_encoder_3": ("caption_channels.0", 1),
        "text_encoder_4": ("caption_channels.1", 1),
    },
    text_tokens={"text_encoder": TOKENS, "text_encoder_2": TOKENS},
    patch=1,
    latents=LATENTS,
)


class HiDream(TransformerFamily):
    """HiDream-I1 full, dev and fast: 48 blocks of four experts, 17 billion weights."""

    name: ClassVar[str] = "hidream"
    label: ClassVar[str] = "HiDream"
    pipelines: ClassVar[tuple[str, ...]] = ("HiDreamImagePipeline",)
    block_classes: ClassVar[tuple[str, ...]] = ("HiDreamBlock",)
    text_encoders: ClassVar[tuple[str, ...]] = tuple(FILES.texts)
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", *(f"tokenizer_{n}" for n in (2, 3, 4)))
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.HiDreamImageTransformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModelWithProjection",
        "text_encoder_2": "transformers.CLIPTextModelWithProjection",
        "text_encoder_3": "transformers.T5EncoderModel",
        "text_encoder_4": "transformers.LlamaForCausalLM",
    }
    files: ClassVar[HostFiles | None] = FILES
    elsewhere: ClassVar[Mapping[str, str]] = {
        "text_encoder_4": "It is Llama 3.1 8B Instruct, which is published on its own: save its "
        "LlamaForCausalLM as text_encoder_4 and its tokenizer as tokenizer_4 there."
    }
    # diffusers' script: uniform, with the shift 3 whatever the base's own scheduler says.
    flow: ClassVar[FlowDefaults] = FlowDefaults(shift="static", factor=3.0)
    most_tokens: ClassVar[int] = TOKENS
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn1\.(to_q|to_v)$",
        "attention": rf"\.{_ATTENTION}$",
        "transformer": rf"\.({_ATTENTION}|ff_t\.w[123]|ff_i\.shared_experts\.w[123])$",
        "all": r"^(double|single)_stream_blocks\.",
    }

    def latent_shape(self, configs: Configs, height: int, width: int) -> tuple[int, ...]:
        """Raises ``UserError`` for an image that is not square and larger than its model takes."""
        shape = super().latent_shape(configs, height, width)
        config = configs["transformer"]
        most = math.prod(config.get("max_resolution") or (128, 128))
        if height != width and math.prod(shape[1:]) > most:
            side = int(math.sqrt(most)) * self.latent_scale(configs["vae"])
            raise UserError(
                f"HiDream takes no image of {width} x {height} pixels: one that is not square has "
                f"at most as many as {side} x {side}",
                where="data.resolution",
                do=f"Set {side} or less.",
            )
        return shape

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """T5's last layer and all of Llama's side by side: ``[batch, tokens, widths]``."""
        found = self.encoded(parts, prompts, do_classifier_free_guidance=False)
        t5, _, llama, _, pooled, _ = found
        return Conditioning(torch.cat([t5, llama.permute(1, 2, 0, 3).flatten(2)], dim=2), pooled)

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """It counts noise in thousandths, and answers with the direction towards the image."""
        t5, llama = _apart(parts, text.embeds)
        return {
            "hidden_states": noisy,
            "timesteps": 1000.0 * times,
            "encoder_hidden_states_t5": t5,
            "encoder_hidden_states_llama3": llama,
            "pooled_embeds": text.pooled,
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        if answer.shape != noisy.shape:
            answer = _spatial(answer, *noisy.shape[-2:])
        return -answer

    def readied(self, pipeline: Any, height: int, width: int) -> None:
        """It would draw every image with as many pixels as a square of the size that it holds for
        its own. A hair more, because it rounds down."""
        pipeline.default_sample_size = math.sqrt(height * width) / pipeline.vae_scale_factor + 1e-6

    def given(self, parts: Components, conditioning: Conditioning) -> dict[str, Any]:
        t5, llama = _apart(parts, conditioning.embeds)
        return {
            "prompt_embeds_t5": t5,
            "prompt_embeds_llama3": llama,
            "pooled_prompt_embeds": conditioning.pooled,
        }

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        config = parts.denoiser.config
        t5, llama = config.caption_channels
        width = t5 + llama * (1 + max(config.llama_layers))
        embeds = torch.empty(batch, self.most_tokens, width, dtype=dtype, device="meta")
        return Conditioning(embeds, embeds.new_empty(batch, config.text_emb_dim))

    def ready_for_meta(self, denoiser: Any) -> None:
        """Every expert is as busy as the others: who gets which token, only values tell."""
        denoiser.train()
        for module in denoiser.modules():
            if hasattr(module, "experts"):
                module.forward = partial(_evenly, module)


def _apart(parts: Components, embeds: Tensor) -> tuple[Tensor, Tensor]:
    """T5's ``[batch, tokens, width]`` and Llama's ``[layers, batch, tokens, width]``."""
    t5, llama = parts.denoiser.config.caption_channels
    layers = embeds[..., t5:].unflatten(2, (-1, llama))
    return embeds[..., :t5], layers.permute(2, 0, 1, 3)


def _spatial(tokens: Tensor, height: int, width: int) -> Tensor:
    """``[n, channels, tokens, 4]``, as the model answers while it is trained (images that are not
    square with padding behind), as ``[n, channels, height, width]``."""
    rows, columns = height // 2, width // 2
    cells = tokens[:, :, : rows * columns].unflatten(3, (2, 2)).unflatten(2, (rows, columns))
    return cells.transpose(3, 4).flatten(4, 5).flatten(2, 3)


def _evenly(layer: Any, hidden: Tensor) -> Tensor:
    """A mixture of experts without its choice: tokens are dealt out in equal shares."""
    dealt = hidden.flatten(0, -2).repeat_interleave(layer.num_activated_experts, dim=0)
    shares = dealt.tensor_split(len(layer.experts))
    answers = [expert(share) for expert, share in zip(layer.experts, shares, strict=True)]
    mixed = torch.cat(answers).unflatten(0, (-1, layer.num_activated_experts)).sum(dim=1)
    found: Tensor = mixed.view_as(hidden) + layer.shared_experts(hidden)
    return found
