"""Krea 2 (Krea 2026): one stream, text from twelve layers of Qwen3-VL, Qwen-Image's autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dreambooth_core.families.base import Conditioning, longer
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files.record import (
    HostFiles,
    Tensors,
    axes,
    count,
    flow_scheduler,
)
from dreambooth_core.families.names.krea2 import BLOCKS, NAMES
from dreambooth_core.families.packing import image_ids, packed, unpacked
from dreambooth_core.families.qwen_image import VideoAutoencoder
from dreambooth_core.families.transformer import Call
from dreambooth_core.objective.shift import FlowDefaults, linear_mu

AXES = (32, 48, 48)
"""Rotary axes of a head of 128."""
LAYERS = tuple(range(2, 36, 3))
"""Of the 36 of Qwen3-VL 4B, those that are read."""


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["img_in.weight"].shape
    block, text = "transformer_blocks.0", "text_fusion.refiner_blocks.0"
    head = len(tensors[f"{block}.attn.norm_q.weight"])
    text_head = len(tensors[f"{text}.attn.norm_q.weight"])
    return {
        "_class_name": "Krea2Transformer2DModel",
        "in_channels": inputs,
        "num_layers": count(tensors, "transformer_blocks."),
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "num_key_value_heads": len(tensors[f"{block}.attn.to_k.weight"]) // head,
        "intermediate_size": len(tensors[f"{block}.ff.gate.weight"]),
        "timestep_embed_dim": tensors["time_embed.linear_1.weight"].shape[1],
        "text_hidden_dim": tensors["txt_in.linear_1.weight"].shape[1],
        "num_text_layers": tensors["text_fusion.projector.weight"].shape[1],
        "text_num_attention_heads": len(tensors[f"{text}.attn.to_q.weight"]) // text_head,
        "text_num_key_value_heads": len(tensors[f"{text}.attn.to_k.weight"]) // text_head,
        "text_intermediate_size": len(tensors[f"{text}.ff.gate.weight"]),
        "num_layerwise_text_blocks": count(tensors, "text_fusion.layerwise_blocks."),
        "num_refiner_text_blocks": count(tensors, "text_fusion.refiner_blocks."),
        "axes_dims_rope": axes(AXES, head),
    }


def _settings(file: str) -> dict[str, Any]:
    return {"text_encoder_select_layers": list(LAYERS), "is_distilled": "turbo" in file.lower()}


_INSIDE = {
    "prenorm": "norm1",
    "postnorm": "norm2",
    "attn.qknorm.qnorm": "attn.norm_q",
    "attn.qknorm.knorm": "attn.norm_k",
}

FILES = HostFiles(
    names=NAMES,
    keys=("txtfusion.projector.weight", "blocks.0.attn.wq.weight", "tproj.1.weight"),
    config=_config,
    scheduler=lambda file, config: flow_scheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, max_image_seq_len=6400
    ),
    norms={
        **{
            f"{host}.{norm}": f"{ours}.{its}"
            for ours, host in BLOCKS.items()
            for norm, its in _INSIDE.items()
        },
        "txtmlp.0": "txt_in.norm",
        "last.norm": "final_layer.norm",
        "last.modulation.lin": "final_layer.scale_shift_table",
        "blocks.#.mod.lin": "transformer_blocks.#.scale_shift_table",
    },
    scales=("qnorm", "knorm", "prenorm", "postnorm", "last.norm", "txtmlp.0"),
    tables={"transformer_blocks.#.scale_shift_table": 6},
    texts={"text_encoder": "Qwen3-VL 4B"},
    text_widths={"text_encoder": ("text_hidden_dim", 1)},
    settings=_settings,
)


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
    files: ClassVar[HostFiles | None] = FILES
    guidance_from: ClassVar[float] = 1.0
    # diffusers' script trains uniformly: the scheduler shifts by size, and only when sampling.
    flow: ClassVar[FlowDefaults] = FlowDefaults(resolution_mu=linear_mu(0.5, 1.15, 256, 6400))
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"^transformer_blocks\..*\.attn\.(to_q|to_v)$",
        "attention": r"\.attn\.(to_q|to_k|to_v|to_out\.0|to_gate)$",
        "transformer": r"\.(attn\.(to_q|to_k|to_v|to_out\.0|to_gate)|ff\.(gate|up|down))$",
        # What diffusers' script trains, and ff.gate.
        "all": r"\.(attn|ff)\.|^(img_in|txt_in|time_embed|time_mod_proj|final_layer|text_fusion)",
    }

    distilled: ClassVar[str] = (
        "this is a Krea 2 distilled to few steps: the longer it is trained the more of that "
        "it forgets. Better is to train on the base model and use the result on this one."
    )

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """The pipeline pads in the middle of its template; what is masked there is left out here:
        the denoiser looks at no such token, and text tokens have no places of their own."""
        both = [self.encoded(parts, [prompt]) for prompt in prompts]
        return Conditioning.joined([Conditioning(embeds[mask][None]) for embeds, mask in both])

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        tokens = text.embeds.shape[1]
        places = image_ids(noisy).float()
        return {
            "hidden_states": packed(noisy),
            "encoder_hidden_states": text.embeds,
            "timestep": times,
            "position_ids": torch.cat([places.new_zeros(tokens, 3), places]),
            "encoder_attention_mask": text.counted(),
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        return unpacked(answer, *noisy.shape[-2:])

    def given(self, parts: Components, conditioning: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": conditioning.embeds, "prompt_embeds_mask": conditioning.counted()}

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        arguments = super().sampling_arguments(parts, prompts, negative, guidance)
        if guidance > 1:
            # One call has one list of places: both prompts are as long as the longer.
            both = ("prompt_embeds", "negative_prompt_embeds")
            most = max(arguments[name].shape[1] for name in both)
            for name in (*both, *(f"{name}_mask" for name in both)):
                arguments[name] = longer(arguments[name], most)
        return arguments

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        config = parts.denoiser.config
        shape = (batch, self.most_tokens, config.num_text_layers, config.text_hidden_dim)
        return Conditioning(torch.empty(shape, dtype=dtype, device="meta"))
