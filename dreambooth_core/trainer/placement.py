"""Who is where: networks are rounded, come to the device, are streamed, compiled, and leave it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.devices import Precision
from dreambooth_core.families.components import Components
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.memory.streaming import Streaming
from dreambooth_core.methods.quantized import quantize
from dreambooth_core.options import TrainConfig


@contextmanager
def evaluating(models: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, nothing is dropped out; afterwards the models are in the modes that they were in."""
    with ExitStack() as undo:
        for model in models:
            undo.callback(model.train, model.training)
            model.eval()
        yield


@dataclass(frozen=True)
class Placement:
    """Where a base's networks are, and how they lie there."""

    config: TrainConfig
    parts: Components
    precision: Precision
    """The run's."""

    def round(self, *, masters: Sequence[str] = ()) -> None:
        """Rounds the frozen weights to the run's precision; not those that are trained whole, which
        become fp32 masters and would lose their last bits."""
        for name, model in self.parts.models.items():
            if name not in masters:
                model.to(self.precision.dtype)
        for model in self.parts.companions.values():
            model.to("cpu", self.precision.dtype)

    def mark(self) -> str:
        """By what the frozen base is known again after training; empty where it will not be as it
        is now: quantised, streamed, in pieces or compiled."""
        memory, sharding = self.config.memory, self.config.run.sharding
        if memory.quantize != "no" or memory.share > 0 or memory.compile or sharding != "no":
            return ""
        return fingerprint(*self.parts.models.values())

    def bring(self, name: str, *, streams: bool = False) -> None:
        """Brings one of the networks to the device, quantised if that is asked. One that will be
        streamed stays in RAM."""
        model, kind = self.parts.models[name], self.config.memory.quantize
        device = self.precision.device
        home = torch.device("cpu") if streams and self.config.memory.share > 0 else device
        if kind != "no":
            quantize(model, kind, self.parts.family.whole_in(name), device, home)
        model.to(home)

    def streaming(self, name: str, *, trained: bool = False) -> Streaming | None:
        """Begins to stream a network, with all that is trained in it, if that is asked."""
        share, model = self.config.memory.share, self.parts.models[name]
        if share == 0:
            return None
        blocks = self.parts.family.blocks(model)
        return Streaming(model, blocks, self.precision.device, share=share, trained=trained)

    def passes(self, models: Sequence[nn.Module]) -> None:
        """Gradient checkpointing of the models that gradients pass, and a compiled denoiser, if
        that is asked. diffusers and transformers name checkpointing differently."""
        for model in models if self.config.memory.gradient_checkpointing else ():
            enable = getattr(model, "enable_gradient_checkpointing", None) or getattr(
                model, "gradient_checkpointing_enable", None
            )
            if enable is not None:
                enable()
        if self.config.memory.compile:
            compile_blocks(self.parts, graphs=self.config.memory.cuda_graphs)

    @contextmanager
    def streamed(self) -> Iterator[None]:
        """Inside, the denoiser is streamed, if that is asked; afterwards it is whole again."""
        self.parts.streaming = self.streaming(self.parts.family.denoiser)
        try:
            yield
        finally:
            if self.parts.streaming:
                self.parts.streaming.close()
                self.parts.streaming = None

    def attend(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Attention as the run wants it, for what computes in ``dtype``."""
        apply_attention(model, self.config.memory.attention, self.precision.device, dtype)

    @contextmanager
    def all(self, precision: Precision, weights: torch.dtype) -> Iterator[None]:
        """Inside, all models are on the device, with attention for the computing precision, to make
        images. Frozen weights in ``weights``; the autoencoder stays in fp32."""
        parts, streams = self.parts, self.config.memory.share > 0
        for model in (*parts.models.values(), *parts.companions.values()):
            home = "cpu" if model is parts.denoiser and streams else precision.device
            model.to(home, weights)
        parts.vae.to(precision.device)
        self.attend(parts.denoiser, precision.dtype)
        self.attend(parts.vae, torch.float32)
        with self.streamed():
            yield


def compile_blocks(parts: Components, *, graphs: bool = False) -> None:
    """Compiles the denoiser's repeated blocks: what is made for one serves all that are like it, so
    it takes no longer for a deep model. ``graphs``: and records each as a CUDA graph."""
    mode = {"mode": "reduce-overhead"} if graphs else {}
    if getattr(parts.denoiser, "_repeated_blocks", None):
        parts.denoiser.compile_repeated_blocks(**mode)
        return
    for block in parts.family.blocks(parts.denoiser):
        block.compile(**mode)
