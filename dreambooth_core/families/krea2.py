"""Krea 2 (Krea 2026): one stream, text from twelve layers of Qwen3-VL, Qwen-Image's autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Components, SizeInfo
from dreambooth_core.families.packing import image_ids, packed, unpacked
from dreambooth_core.families.qwen_image import VideoAutoencoder
from dreambooth_core.families.text import Conditioning
from dreambooth_core.objective.shift import FlowDefaults, linear_mu
from dreambooth_core.transfer import send


class Krea2(VideoAutoencoder):
    """Krea 2: 28 blocks, 12.8 billion weights."""

    name: ClassVar[str] = "krea2"
    label: ClassVar[str] = "Krea 2"
    pipelines: ClassVar[tuple[str, ...]] = ("Krea2Pipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.Krea2Transformer2DModel",
        "vae": "diffusers.AutoencoderKLQwenImage",
        "text_encoder": "transformers.Qwen3VLModel",
    }
    # diffusers' script trains uniformly: the scheduler shifts by size, and only when sampling.
    flow: ClassVar[FlowDefaults] = FlowDefaults(resolution_mu=linear_mu(0.5, 1.15, 256, 6400))
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"^transformer_blocks\..*\.attn\.(to_q|to_v)$",
        "attention": r"\.attn\.(to_q|to_k|to_v|to_out\.0|to_gate)$",
        "transformer": r"\.(attn\.(to_q|to_k|to_v|to_out\.0|to_gate)|ff\.(gate|up|down))$",
        # What diffusers' script trains, and ff.gate.
        "all": r"\.(attn|ff)\.|^(img_in|txt_in|time_embed|time_mod_proj|final_layer|text_fusion)",
    }

    def warnings(self, parts: Components) -> list[str]:
        if not parts.settings.get("is_distilled"):
            return []
        return [
            "this is a Krea 2 distilled to few steps: the longer it is trained the more of that "
            "it forgets. Better is to train on the base model and use the result on this one."
        ]

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """The pipeline pads in the middle of its template; what is masked there is left out here:
        the denoiser looks at no such token, and text tokens have no places of their own."""
        pipeline, found = self.text_pipeline(parts), []
        for prompt in prompts:
            embeds, mask = pipeline.encode_prompt(
                [prompt], self.text_device(parts), max_sequence_length=self.most_tokens
            )
            found.append(Conditioning(embeds[mask][None]))
        return Conditioning.joined(found)

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        tokens = conditioning.embeds.shape[1]
        places = image_ids(noisy).float()
        answer: Tensor = parts.denoiser(
            hidden_states=packed(noisy),
            encoder_hidden_states=conditioning.embeds,
            timestep=timesteps,
            position_ids=torch.cat([places.new_zeros(tokens, 3), places]),
            encoder_attention_mask=_mask(conditioning),
            return_dict=False,
        )[0]
        return unpacked(answer, *noisy.shape[-2:])

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        # diffusers counts from 0 here what everybody else counts from 1: no guidance.
        scale = max(guidance - 1.0, 0.0)
        found = self.placed(parts, self.encode(parts, prompts))
        arguments = {
            "prompt_embeds": found.embeds,
            "prompt_embeds_mask": _mask(found),
            "guidance_scale": scale,
        }
        if scale:
            # One call has one list of places: both prompts are as long as the longer.
            other = self.encode(parts, [negative] * len(prompts))
            both = Conditioning.joined([found, self.placed(parts, other)])
            count, lengths = len(prompts), [*_lengths(found), *_lengths(other)]
            mask = _valid(lengths, both.embeds)
            arguments |= {
                "prompt_embeds": both.embeds[:count],
                "prompt_embeds_mask": mask[:count],
                "negative_prompt_embeds": both.embeds[count:],
                "negative_prompt_embeds_mask": mask[count:],
            }
        return arguments

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        config = parts.denoiser.config
        shape = (batch, self.most_tokens, config.num_text_layers, config.text_hidden_dim)
        return Conditioning(torch.empty(shape, dtype=dtype, device="meta"))


def _lengths(conditioning: Conditioning) -> Sequence[int]:
    count, tokens = conditioning.embeds.shape[:2]
    return conditioning.lengths or [tokens] * count


def _mask(conditioning: Conditioning) -> Tensor:
    """True where a token counts, ``[batch, tokens]``."""
    return _valid(_lengths(conditioning), conditioning.embeds)


def _valid(lengths: Sequence[int], embeds: Tensor) -> Tensor:
    rows = [[i < length for i in range(embeds.shape[1])] for length in lengths]
    return send(torch.tensor(rows), embeds.device)
