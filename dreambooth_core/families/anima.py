"""Anima (CircleStone 2026): Cosmos-Predict2's transformer, Qwen3 text through a conditioner.

diffusers has a modular pipeline of it and no other. Its transformer resizes a mask of zeros by
torchvision, which nothing else here needs: :func:`_without_torchvision` gives it that one function.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dreambooth_core.families.base import Conditioning
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files.record import HostFiles, Tensors, count, flow_scheduler
from dreambooth_core.families.names.anima import NAMES
from dreambooth_core.families.qwen_image import VideoAutoencoder
from dreambooth_core.families.transformer import Call

HEAD = 128
"""Numbers of a head, in every size."""


def _config(tensors: Tensors) -> dict[str, Any]:
    width, inputs = tensors["patch_embed.proj.weight"].shape
    block = "transformer_blocks.0"
    return {
        "_class_name": "CosmosTransformer3DModel",
        "in_channels": inputs // 4 - 1,
        "out_channels": len(tensors["proj_out.weight"]) // 4,
        "num_attention_heads": width // HEAD,
        "attention_head_dim": HEAD,
        "num_layers": count(tensors, "transformer_blocks."),
        "mlp_ratio": len(tensors[f"{block}.ff.net.0.proj.weight"]) / width,
        "text_embed_dim": tensors[f"{block}.attn2.to_k.weight"].shape[1],
        "adaln_lora_dim": len(tensors[f"{block}.norm1.linear_1.weight"]),
        # As Cosmos-Predict2 2B for single images.
        "rope_scale": [1.0, 4.0, 4.0],
        "extra_pos_embed_type": None,
    }


FILES = HostFiles(
    names=NAMES,
    keys=(
        "x_embedder.proj.1.weight",
        "blocks.0.adaln_modulation_self_attn.1.weight",
        "blocks.0.mlp.layer1.weight",
    ),
    config=_config,
    scheduler=lambda file, config: flow_scheduler(shift=3.0),
    norms={
        "t_embedding_norm": "time_embed.norm",
        **{
            f"blocks.#.{kind}_attn.{letter}_norm": f"transformer_blocks.#.attn{n}.norm_{letter}"
            for n, kind in ((1, "self"), (2, "cross"))
            for letter in "qk"
        },
    },
    # What its makers' trainer counts and what the positions are computed from.
    unused=(
        *("pos_embedder.seq", "pos_embedder.dim_spatial_range", "pos_embedder.dim_temporal_range"),
        *("accum_video_sample_counter", "accum_image_sample_counter", "accum_iteration"),
        *("accum_train_in_hours", "_extra_state"),
    ),
    texts={"text_encoder": "Qwen3 0.6B", "text_conditioner": "conditioner (llm_adapter)"},
    text_widths={
        "text_encoder": ("text_embed_dim", 1),
        "text_conditioner": ("text_embed_dim", 1),
    },
    patch=1,
)


class Anima(VideoAutoencoder):
    """Anima: 28 blocks, 2 billion weights, and a conditioner of six."""

    name: ClassVar[str] = "anima"
    label: ClassVar[str] = "Anima"
    pipelines: ClassVar[tuple[str, ...]] = ("AnimaModularPipeline",)
    # The conditioner reads T5's tokens with Qwen3's answers: it belongs to what encodes a prompt.
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "text_conditioner")
    tokenizers: ClassVar[tuple[str, ...]] = ("tokenizer", "t5_tokenizer")
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "diffusers.CosmosTransformer3DModel",
        "vae": "diffusers.AutoencoderKLQwenImage",
        "text_encoder": "transformers.Qwen3Model",
        "text_conditioner": "diffusers.AnimaTextConditioner",
    }
    files: ClassVar[HostFiles | None] = FILES
    context: ClassVar[str] = "text_embed_dim"
    targets: ClassVar[Mapping[str, str]] = {
        "query_value": r"\.attn[12]\.(to_q|to_v)$",
        "attention": r"\.attn[12]\.(to_q|to_k|to_v|to_out\.0)$",
        "transformer": r"\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))$",
        "all": r"^transformer_blocks\.",
    }

    def _class(self, name: str) -> Any:
        _without_torchvision()
        return super()._class(name)

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        """Qwen3's last layer and T5's tokens, joined by the conditioner; 512 tokens, those behind
        the prompt zero. The denoiser gets no mask."""
        from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

        encoder, conditioner = parts.text_encoders
        tokenizer, t5 = parts.tokenizers
        found = AnimaTextEncoderStep.encode_prompt(
            SimpleNamespace(text_encoder=encoder, tokenizer=tokenizer, t5_tokenizer=t5),
            list(prompts),
            prepare_unconditional_embeds=False,
            max_sequence_length=self.most_tokens,
            device=self.text_device(parts),
            dtype=next(conditioner.parameters()).dtype,
        )
        embeds = conditioner(
            source_hidden_states=found["qwen_prompt_embeds"],
            target_input_ids=found["t5_input_ids"],
            target_attention_mask=found["t5_attention_mask"],
            source_attention_mask=found["qwen_attention_mask"],
        )
        return Conditioning(embeds)

    def inputs(self, parts: Components, noisy: Tensor, times: Tensor, text: Conditioning) -> Call:
        height, width = (side * parts.latent_scale for side in noisy.shape[-2:])
        return {
            "hidden_states": noisy.unsqueeze(2),
            "timestep": times,
            "encoder_hidden_states": text.embeds,
            "padding_mask": noisy.new_zeros(1, 1, height, width),
        }

    def answered(self, answer: Tensor, noisy: Tensor) -> Tensor:
        return answer.squeeze(2)

    # Sampling

    def pipeline_class(self, parts: Components) -> type[Any]:
        return Sampler

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        def predict(noisy: Tensor, times: Tensor, given: Conditioning) -> Tensor:
            return self.predict(parts, noisy, times, given, [])

        found = super().sampling_arguments(parts, prompts, negative, guidance)
        return {**found, "predict": predict}

    def latents_of(self, parts: Components, made: Tensor, height: int, width: int) -> Tensor:
        return made.squeeze(2)


class Sampler:
    """Samples by diffusers' scheduler from prompts that are encoded already.

    The modular pipeline encodes each time that it is called, and the text encoders have left by
    then. The steps are the same, and tests compare both.
    """

    def __init__(self, *, scheduler: Any, transformer: Any, vae: Any, **others: Any) -> None:
        self.scheduler, self.transformer, self.vae = scheduler, transformer, vae

    def set_progress_bar_config(self, **_: Any) -> None:
        """There is no bar."""

    def __call__(
        self,
        *,
        predict: Any,
        prompt_embeds: Tensor,
        num_inference_steps: int,
        height: int,
        width: int,
        generator: list[torch.Generator],
        negative_prompt_embeds: Tensor | None = None,
        guidance_scale: float = 4.0,
        callback_on_step_end: Any = None,
        **_: Any,
    ) -> SimpleNamespace:
        """Latents ``[batch, channels, 1, height, width]``, as the modular pipeline gives them."""
        from diffusers.utils.torch_utils import randn_tensor

        count, like = len(prompt_embeds), prompt_embeds
        scale = 2 ** len(self.vae.config.temperal_downsample)
        shape = (count, self.vae.config.z_dim, height // scale, width // scale)
        latents = randn_tensor(shape, generator, like.device, torch.float32)
        sigmas = [1 - i / num_inference_steps for i in range(num_inference_steps)]
        self.scheduler.set_timesteps(sigmas=sigmas, device=like.device)
        for step, time in enumerate(self.scheduler.timesteps):
            times = (time / self.scheduler.config.num_train_timesteps).expand(count)
            given = (latents.to(like.dtype), times.to(like.dtype))
            answer = predict(*given, Conditioning(prompt_embeds)).float()
            if negative_prompt_embeds is not None:
                other = predict(*given, Conditioning(negative_prompt_embeds)).float()
                answer = other + guidance_scale * (answer - other)
            latents = self.scheduler.step(answer, time, latents, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, time, {})
        return SimpleNamespace(images=latents.unsqueeze(2))


def _without_torchvision() -> None:
    """diffusers asks torchvision for one function, and raises a NameError without it."""
    from diffusers.models.transformers import transformer_cosmos

    def resized(mask: Tensor, size: list[int], interpolation: str) -> Tensor:
        return nn.functional.interpolate(mask, size=size, mode=interpolation)

    if not hasattr(transformer_cosmos, "transforms"):
        transformer_cosmos.transforms = SimpleNamespace(
            functional=SimpleNamespace(resize=resized),
            InterpolationMode=SimpleNamespace(NEAREST="nearest"),
        )
