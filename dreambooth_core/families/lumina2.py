"""Lumina-Image 2 (Alpha-VLLM 2025): one stream of text and image tokens, Gemma 2 text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Components, SizeInfo
from dreambooth_core.families.text import Conditioning
from dreambooth_core.families.transformer import TransformerFamily


class Lumina2(TransformerFamily):
    """Lumina-Image 2: 26 blocks and two refiners of two, 2.6 billion weights."""

    name: ClassVar[str] = "lumina2"
    label: ClassVar[str] = "Lumina 2"
    pipelines: ClassVar[tuple[str, ...]] = ("Lumina2Pipeline", "Lumina2Text2ImgPipeline")
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.Lumina2Transformer2DModel",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.Gemma2Model",
    }
    most_tokens: ClassVar[int] = 256
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn\.(to_q|to_v)$",
        "attention": r"\.attn\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.(attn\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.linear_[123])$",
        "all": r"\.(attn|feed_forward|norm1)\.",
    }

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        return self._encode(parts, prompts, "")[0]

    def _encode(
        self, parts: Components, prompts: Sequence[str], negative: str
    ) -> tuple[Conditioning, Conditioning]:
        """Prompts behind the system prompt, and a negative one, which gets none."""
        embeds, mask, other, other_mask = self.text_pipeline(parts).encode_prompt(
            list(prompts),
            negative_prompt=[negative] * len(prompts),
            device=self.text_device(parts),
            max_sequence_length=self.most_tokens,
        )
        return Conditioning(embeds, mask=mask), Conditioning(other, mask=other_mask)

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        """It counts the share of the image, and answers with the direction towards it."""
        answer: Tensor = parts.denoiser(
            hidden_states=noisy,
            timestep=1.0 - timesteps,
            encoder_hidden_states=conditioning.embeds,
            encoder_attention_mask=conditioning.mask,
            return_dict=False,
        )[0]
        return -answer

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        positive, other = (
            self.placed(parts, found) for found in self._encode(parts, prompts, negative)
        )
        return {
            "prompt_embeds": positive.embeds,
            "prompt_attention_mask": positive.mask,
            "negative_prompt_embeds": other.embeds,
            "negative_prompt_attention_mask": other.mask,
            "guidance_scale": guidance,
        }

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        width = parts.denoiser.config.cap_feat_dim
        return Conditioning(
            torch.empty(batch, self.most_tokens, width, dtype=dtype, device="meta"),
            # Its numbers are asked for, which the meta device does not have.
            mask=torch.ones(batch, self.most_tokens, dtype=torch.int64),
        )
