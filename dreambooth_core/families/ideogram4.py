"""Ideogram 4 (Ideogram 2026): one stream, text from thirteen layers of Qwen3-VL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.devices import send
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components, Loaded
from dreambooth_core.families.flux2 import FoldedLatents, cells
from dreambooth_core.families.host_files.record import HostFiles, Tensors, count, flow_scheduler
from dreambooth_core.families.names.ideogram4 import NAMES
from dreambooth_core.families.transformer import Call
from dreambooth_core.formats.checkpoints.parts import ModelParts
from dreambooth_core.objective.shift import FlowDefaults, root_mu

TEXT, IMAGE = 3, 2
"""What the denoiser is told of each token: its kind (0 is padding) …"""
SEEN, PADDING = 1, -1
"""… and its segment: tokens of one look at each other alone."""
FIRST_PLACE = 65536
"""Where images begin on all three axes, so that no text reaches them."""

MROPE, ROPE = [24, 20, 20], 5_000_000
"""Shares of the three axes in the angles of places, and their base."""
TAPS = 13
"""Layers of Qwen3-VL that are read."""


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["input_proj.weight"].shape
    block = "layers.0"
    head = len(tensors[f"{block}.attention.norm_q.weight"])
    return {
        "_class_name": "Ideogram4Transformer2DModel",
        "in_channels": inputs,
        "num_layers": count(tensors, "layers."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "intermediate_size": len(tensors[f"{block}.feed_forward.w1.weight"]),
        "adaln_dim": len(tensors["adaln_proj.weight"]),
        "llm_features_dim": len(tensors["llm_cond_norm.weight"]),
        "mrope_section": MROPE,
        "rope_theta": ROPE,
    }


FILES = HostFiles(
    names=NAMES,
    keys=("layers.0.attention.qkv.weight", "llm_cond_norm.weight", "embed_image_indicator.weight"),
    config=_config,
    scheduler=lambda file, config: flow_scheduler(),
    texts={"text_encoder": "Qwen3-VL 8B"},
    text_widths={"text_encoder": ("llm_features_dim", TAPS)},
    beside={"unconditional_transformer": "unconditional"},
)


class Ideogram4(FoldedLatents):
    """Ideogram 4: 34 layers, 9.3 billion weights, and as many again for guidance, in a denoiser
    that never sees a prompt."""

    name: ClassVar[str] = "ideogram4"
    label: ClassVar[str] = "Ideogram 4"
    pipelines: ClassVar[tuple[str, ...]] = ("Ideogram4Pipeline",)
    companions: ClassVar[tuple[str, ...]] = ("unconditional_transformer",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.Ideogram4Transformer2DModel",
        "unconditional_transformer": "diffusers.Ideogram4Transformer2DModel",
        "vae": "diffusers.AutoencoderKLFlux2",
        "text_encoder": "transformers.Qwen3VLModel",
    }
    files: ClassVar[HostFiles | None] = FILES
    # Its makers draw around a mean that grows with the image, from 0 at 512 px: diffusers' script.
    flow: ClassVar[FlowDefaults] = FlowDefaults(
        "logit_normal", std=1.5, shift="resolution", resolution_mu=root_mu(1024), patch=1
    )
    native: ClassVar[int] = 2048
    most_tokens: ClassVar[int] = 2048
    context: ClassVar[str] = "llm_features_dim"
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attention\.(to_q|to_v)$",
        "attention": r"\.attention\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])$",
        "all": r"^layers\.",
    }
    whole_layers: ClassVar[str] = (
        rf"{FoldedLatents.whole_layers}|^(input_proj|llm_cond_proj|adaln_proj)$"
    )

    def load(self, path: Path, stored: ModelParts | None, *, weights: bool) -> Loaded:
        found = super().load(path, stored, weights=weights)
        found.settings.pop("prompt_enhancer_head", None)  # writes prompts, which nobody asks for
        return found

    def warnings(self, parts: Components) -> list[str]:
        return [
            "Ideogram 4 was trained on captions in JSON: plain sentences work, and captions of its "
            "own form work better."
        ]

    def folded(self, latents: Tensor) -> Tensor:
        """The channel varies fastest here, then the column."""
        return super().folded(latents).unflatten(1, (-1, 4)).transpose(1, 2).flatten(1, 2)

    def unfolded(self, latents: Tensor) -> Tensor:
        return super().unfolded(latents.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2))

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """Without the padding, at which the denoiser does not look; nothing else that the
        pipeline gives it depends on the text."""
        pipeline, found = self.text_pipeline(parts), []
        for prompt, tokens in zip(prompts, self._counted(parts, prompts), strict=True):
            embeds, *_ = pipeline.encode_prompt([prompt], 0, 0, tokens, self.text_device(parts))
            found.append(Conditioning(embeds))
        return Conditioning.joined(found)

    def _counted(self, parts: Components, prompts: Sequence[str]) -> list[int]:
        """Tokens of each prompt within the template. Raises ``UserError`` for one too long."""
        counts = []
        for prompt in prompts:
            message = {"role": "user", "content": [{"type": "text", "text": prompt}]}
            text = parts.tokenizers[0].apply_chat_template(
                [message], add_generation_prompt=True, tokenize=False
            )
            counts.append(len(parts.tokenizers[0](text, add_special_tokens=False).input_ids))
            if counts[-1] > self.most_tokens:
                raise UserError(
                    f"a prompt has {counts[-1]:,} tokens, and {self.most_tokens:,} are read",
                    where=f"{prompt[:60]}…",
                    do="Shorten it.",
                )
        return counts

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        """It counts the share of the image, and answers with the direction towards it."""
        count, channels, height, width = noisy.shape
        embeds, image = text.embeds, noisy.flatten(2).transpose(1, 2)
        tokens = embeds.shape[1]
        lengths = text.lengths or (tokens,) * count
        places, segments, kinds = _layout(lengths, tokens, height, width)
        blind = embeds.new_zeros(count, height * width, embeds.shape[2])
        return {
            "hidden_states": torch.cat([image.new_zeros(count, tokens, channels), image], dim=1),
            "timestep": (1.0 - times).to(noisy.dtype),
            "encoder_hidden_states": torch.cat([embeds, blind], dim=1),
            "position_ids": send(places, noisy.device),
            "segment_ids": send(segments, noisy.device),
            "indicator": send(kinds, noisy.device),
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        height, width = noisy.shape[-2:]
        return -cells(answer[:, -height * width :], height, width)

    def pipeline_modules(self, parts: Components) -> dict[str, Any]:
        return {**super().pipeline_modules(parts), **parts.companions, "prompt_enhancer_head": None}

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        """The pipeline takes prompts alone, and has no negative ones."""
        return {
            "prompt": list(prompts),
            "max_sequence_length": max(self._counted(parts, prompts)),
            "guidance_scale": guidance,
            "guidance_schedule": None,
        }

    def ready_for_meta(self, denoiser: Any) -> None:
        """The model takes care of the angles' precision by the name of the device, and the meta
        device has none that counts."""
        denoiser.rotary_emb.forward = partial(_angles, denoiser.config)


def _angles(config: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[n, tokens, head]`` without values."""
    count, tokens, _ = places.shape
    angles = torch.empty(count, tokens, config.attention_head_dim, device=places.device)
    return angles, angles


def _layout(
    lengths: Sequence[int], tokens: int, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Places ``[n, tokens + h·w, 3]``, segments and kinds ``[n, tokens + h·w]`` of text and image
    tokens, on the host."""
    count, size = len(lengths), height * width
    axes = [torch.arange(1), torch.arange(height), torch.arange(width)]
    image = FIRST_PLACE + torch.cartesian_prod(*axes).expand(count, -1, -1)
    number = torch.arange(tokens).expand(count, -1)
    there = number < torch.tensor(lengths)[:, None]
    text = torch.where(there, number, 0)[..., None].expand(-1, -1, 3)
    seen = torch.cat([there, torch.ones(count, size, dtype=torch.bool)], dim=1)
    kinds = torch.cat([there * TEXT, torch.full((count, size), IMAGE)], dim=1)
    return torch.cat([text, image], dim=1), torch.where(seen, SEEN, PADDING), kinds
