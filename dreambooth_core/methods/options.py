"""Options of the method: what is trained, how large it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dreambooth_core.config.fields import advanced, option
from dreambooth_core.methods.table import METHODS

TARGETS = ("query_value", "attention", "transformer", "all")


def _of_text(name: str, between: tuple[float, float]) -> Any:
    says = f"{name} of the text encoder's adapter. Empty: the denoiser's."
    return advanced(None, label=f"{name}, text encoder", help=says, between=between)


@dataclass
class MethodOptions:
    """What is trained."""

    kind: str = option(
        "lora",
        label="Method",
        help=" ".join(f"{name}: {spec.help}" for name, spec in METHODS.ours().items()),
        choices=METHODS,
    )
    train_denoiser: bool = advanced(
        True,
        label="Train the denoiser",
        help="The denoising network: a UNet or a transformer.",
        aliases=("unet",),
    )
    train_text_encoder: bool = option(
        False,
        label="Train the text encoder",
        help="""Train the text encoder too. Brings a subject closer, costs memory, and
        overfits sooner.""",
        aliases=("text_encoder",),
    )
    rank: int = option(
        16,
        help="""Rank (dimension) of the adapter: 4 to 32 is plenty for a subject, more for a style.
        For OFT the block size.""",
        between=(1, 1024),
    )
    alpha: float = option(
        16.0,
        help="The adapter's output is scaled by alpha / rank. Usually equal to the rank.",
        between=(0.001, 1000000.0),
    )
    dropout: float = advanced(
        0.0,
        help="Share of the adapter's inputs that are dropped while training. Not for OFT.",
        between=(0.0, 0.9),
    )
    target_modules: str = option(
        "attention",
        help="""The layers that get an adapter. attention: the query, key, value and output layers.
        query_value: two of them.
        transformer: all linear layers of the transformer blocks. all: convolutions too. Or how
        names of the denoiser's layers in diffusers end, such as attn.to_q, ff.net.2; or, such as
        transformer_blocks.(7|12).attn.*, a regular expression for whole names.""",
        choices=TARGETS,
        open=True,
        aliases=("targets",),
    )
    text_rank: int | None = _of_text("Rank", (1, 1024))
    text_alpha: float | None = _of_text("Alpha", (0.001, 1000000.0))
    text_dropout: float | None = _of_text("Dropout", (0.0, 0.9))
    placeholder_token: str = option(
        "sks",
        help="""textual_inversion, pivotal: the token that is learned. It must be in the prompts,
        and names the embedding's file.""",
        aliases=("token",),
    )
    initializer_token: str = option(
        "",
        help="""textual_inversion, pivotal: the token whose embedding it starts from, such as the
        class. Empty: random.""",
    )
    num_vectors: int = advanced(
        1,
        label="Vectors per token",
        help="textual_inversion, pivotal: how many tokens of a prompt it takes.",
        between=(1, 64),
        aliases=("vectors",),
    )
    init_from: str = option(
        "",
        label="Start from an adapter",
        help="""An adapter file, of any naming and rank, that training starts from: the first step
        is what the file is. The layers that it changes are trained too. Empty: from nothing.""",
        path="file",
    )
    training_adapter: str = advanced(
        "",
        help="""A LoRA file that is on the denoiser while an adapter is trained, and neither in the
        result nor in validation images. One that undoes a distillation lets Z-Image Turbo or
        schnell keep their few steps. Empty: none.""",
        path="file",
    )
    init_weight: float = advanced(
        1.0,
        label="Weight of that adapter",
        help="The strength at which the adapter is taken over.",
        between=(-10.0, 10.0),
    )
