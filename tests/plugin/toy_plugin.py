"""A package of other people: a family, an adapter method and an optimizer of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from dreambooth_core.families.base import Conditioning, SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.families.names.record import GENERIC, LayerNames
from dreambooth_core.families.transformer import TransformerFamily
from dreambooth_core.methods.adapters import Lora
from dreambooth_core.methods.table import MethodSpec
from dreambooth_core.optim.table import OptimizerSpec, like_weights


class ToyDenoiser(ModelMixin, ConfigMixin):
    """Each latent cell alone, with the time and the mean of the text."""

    @register_to_config
    def __init__(self, channels: int = 4, width: int = 32, text: int = 32) -> None:
        super().__init__()
        self.cell = nn.Linear(channels + 1, width)
        self.prompt = nn.Linear(text, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.out = nn.Linear(width, channels)

    def forward(self, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        times = time.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])
        hidden = self.cell(torch.cat([x, times], dim=1).movedim(1, -1))
        hidden = hidden + self.prompt(text.mean(1))[:, None, None]
        for block in self.blocks:
            hidden = hidden + torch.nn.functional.silu(block(hidden))
        answer: Tensor = self.out(hidden).movedim(-1, 1)
        return answer


class ToyPipeline(DiffusionPipeline):
    """Euler's method from noise to image."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        self.register_modules(**parts)

    def __call__(
        self,
        text: Tensor,
        num_inference_steps: int,
        width: int,
        height: int,
        generator: list[torch.Generator],
        callback_on_step_end: Any,
        **_: Any,
    ) -> SimpleNamespace:
        shape = (self.transformer.config.channels, height // 8, width // 8)
        latents = torch.stack([torch.randn(shape, generator=one) for one in generator]).to(text)
        for step in range(num_inference_steps):
            share = 1 - step / num_inference_steps
            time = torch.full((len(latents),), share, device=latents.device)
            latents = latents - self.transformer(latents, time, text) / num_inference_steps
            callback_on_step_end(self, step, share, {})
        return SimpleNamespace(images=latents)


class Toy(TransformerFamily):
    """The smallest model that there can be."""

    name: ClassVar[str] = "toy"
    label: ClassVar[str] = "Toy"
    pipelines: ClassVar[tuple[str, ...]] = ("ToyPipeline",)
    classes: ClassVar[Mapping[str, str]] = {
        "transformer": "toy_plugin.ToyDenoiser",
        "vae": "diffusers.AutoencoderKL",
        "text_encoder": "transformers.CLIPTextModel",
    }
    targets: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("query_value", "attention", "transformer", "all"), r"^blocks\."
    )
    size_step: ClassVar[int] = 8
    native: ClassVar[int] = 64

    def encode(self, parts: Components, prompts: Sequence[str]) -> Conditioning:
        ids = parts.tokenizers[0](
            list(prompts), padding="max_length", max_length=16, truncation=True, return_tensors="pt"
        ).input_ids
        encoder = parts.text_encoders[0]
        return Conditioning(encoder(ids.to(encoder.device)).last_hidden_state)

    def predict(
        self,
        parts: Components,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        sizes: Sequence[SizeInfo],
        inpainting: Tensor | None = None,
    ) -> Tensor:
        answer: Tensor = parts.denoiser(noisy, timesteps, conditioning.embeds)
        return answer

    def pipeline_class(self, parts: Components) -> type[Any]:
        return ToyPipeline

    def sampling_arguments(
        self, parts: Components, prompts: Sequence[str], negative: str, guidance: float
    ) -> dict[str, Any]:
        return {"text": self.placed(parts, self.encode(parts, prompts)).embeds}

    def blank(self, parts: Components, batch: int, dtype: torch.dtype) -> Conditioning:
        width = parts.denoiser.config.text
        return Conditioning(torch.empty(batch, 16, width, dtype=dtype, device="meta"))


class RsLora(Lora):
    """LoRA whose scale falls with the root of the rank (Kalajdzievski 2023)."""

    def peft_config(self, layers: list[str], rank: int, alpha: float, dropout: float) -> Any:
        config = super().peft_config(layers, rank, alpha, dropout)
        config.use_rslora = True
        return config


class SignDescent(torch.optim.Optimizer):
    """Each weight by the learning rate against the sign of its gradient."""

    def __init__(self, params: Any, lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in (p for p in group["params"] if p.grad is not None):
                weight.sub_(weight.grad.sign(), alpha=group["lr"])


TOY = Toy()
NAMES = LayerNames(
    "toy", "Toy", {"blocks.#": "blocks.#"}, hosts={"ComfyUI": GENERIC}, base_version="toy"
)
RSLORA = MethodSpec("rslora", "LoRA for high ranks.", "toy_plugin:RsLora")
SIGN = OptimizerSpec(
    "sign", "torch", "toy_plugin:SignDescent", like_weights(0), betas=(), has_epsilon=False
)
