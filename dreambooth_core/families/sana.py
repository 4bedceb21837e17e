"""Sana (NVIDIA 2024): linear attention, Gemma 2 text, an autoencoder of 32 pixels a cell."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components, Configs
from dreambooth_core.families.transformer import Call, TransformerFamily
from dreambooth_core.objective.shift import FlowDefaults

_ATTENTION = r"attn[12]\.(to_q|to_k|to_v|to_out\.0)"


class Sana(TransformerFamily):
    """Sana and Sana 1.5: 20 to 60 blocks, 0.6, 1.6 and 4.8 billion weights."""

    name: ClassVar[str] = "sana"
    label: ClassVar[str] = "Sana"
    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.SanaTransformer2DModel",
        "vae": "diffusers.AutoencoderDC",
        "text_encoder": "transformers.Gemma2Model",
    }
    # Its makers' configurations: logit-normal, and the shift of 3 that its sampler has too.
    flow: ClassVar[FlowDefaults] = FlowDefaults("logit_normal", shift="static", factor=3.0, patch=1)
    size_step: ClassVar[int] = 32
    most_tokens: ClassVar[int] = 300
    context: ClassVar[str] = "caption_channels"
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn[12]\.(to_q|to_v)$",
        "attention": rf"\.{_ATTENTION}$",
        "transformer": rf"\.({_ATTENTION}|ff\.conv_(inverted|point))$",
        "all": rf"\.({_ATTENTION}|ff\.conv_(inverted|point))$|^(time_embed|caption_projection)\.",
    }

    def latent_scale(self, vae: Mapping[str, Any]) -> int:
        return int(2 ** (len(vae["encoder_block_out_channels"]) - 1))

    def vae_channels(self, vae: Mapping[str, Any]) -> tuple[int, int]:
        first, last = (vae[f"{half}_block_out_channels"] for half in ("encoder", "decoder"))
        return int(first[0]), int(max(last[:2]))

    def native_size(self, configs: Configs) -> int:
        return int(configs["transformer"]["sample_size"]) * self.latent_scale(configs["vae"])

    def encode_pixels(self, parts: Components, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Its autoencoder has one answer and no distribution."""
        found: Tensor = parts.vae.encode(pixels).latent
        return found, torch.zeros_like(found)

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """Behind the long instruction that the pipeline puts before every prompt by itself: as
        what is trained will be sampled. diffusers' script leaves it out unless it is given."""
        called = inspect.signature(self.pipeline_class(parts).__call__).parameters
        return self._encode(parts, prompts, called["complex_human_instruction"].default)

    def _encode(
        self, parts: Components, prompts: Sequence[str], instruction: list[str] | None
    ) -> Conditioning:
        embeds, mask, _, _ = self.encoded(
            parts,
            prompts,
            do_classifier_free_guidance=False,
            complex_human_instruction=instruction,
        )
        return Conditioning(embeds, mask=mask)

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """It counts noise in thousandths, times a factor of its own."""
        return {
            "hidden_states": noisy,
            "encoder_hidden_states": text.embeds,
            "encoder_attention_mask": text.mask,
            "timestep": 1000.0 * times * parts.denoiser.config.timestep_scale,
        }

    def unwanted(self, parts: Components, negative: str, count: int) -> Conditioning:
        """Without the instruction."""
        return self._encode(parts, [negative] * count, None)

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        return {
            **super().sampling_arguments(parts, prompts, negative, guidance),
            # Checked beside embeddings too, where there is a negative prompt.
            "negative_prompt": None,
            # Sizes are as they were asked for.
            "use_resolution_binning": False,
        }

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        mask = torch.ones(batch, self.most_tokens, device="meta")
        return replace(super().blank(parts, batch, dtype), mask=mask)
