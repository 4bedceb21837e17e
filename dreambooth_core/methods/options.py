"""Options of the method: what is trained, how large it is."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.fields import option
from dreambooth_core.methods.table import METHODS

TARGETS = ("query_value", "attention", "transformer", "all")


@dataclass
class MethodOptions:
    """What is trained."""

    kind: str = option(
        "lora",
        label="Method",
        help=" ".join(f"{name}: {spec.help}" for name, spec in METHODS.ours().items()),
        choices=METHODS,
    )
    unet: bool = option(
        True,
        label="Train the UNet",
        help="The denoising network.",
        advanced=True,
    )
    text_encoder: bool = option(
        False,
        label="Train the text encoder",
        help="""The part that reads the prompt. Brings a subject closer, costs memory, and
        over-fits sooner.""",
    )
    rank: int = option(
        16,
        label="Rank",
        help="""Size of the adapter: 4 to 32 is plenty for a subject, more for a style. For
        OFT it is the block size.""",
        minimum=1,
        maximum=1024,
    )
    alpha: float = option(
        16.0,
        label="Alpha",
        help="The adapter's output is scaled by alpha / rank. Usually equal to the rank.",
        minimum=0.001,
        maximum=1000000.0,
    )
    dropout: float = option(
        0.0,
        label="Dropout",
        help="Share of the adapter's inputs that are dropped while training. Not for OFT.",
        minimum=0.0,
        maximum=0.9,
        advanced=True,
    )
    targets: str = option(
        "attention",
        label="Layers",
        help="""attention: the query, key, value and output layers. query_value: two of them.
        transformer: all linear layers of the transformer blocks. all: convolutions too.""",
        choices=TARGETS,
    )
    text_rank: int | None = option(
        None,
        label="Rank, text encoder",
        help="Rank of the text encoder's adapter; the UNet's if left empty.",
        minimum=1,
        maximum=1024,
        advanced=True,
    )
    text_alpha: float | None = option(
        None,
        label="Alpha, text encoder",
        help="Alpha of the text encoder's adapter; the UNet's if left empty.",
        minimum=0.001,
        maximum=1000000.0,
        advanced=True,
    )
    text_dropout: float | None = option(
        None,
        label="Dropout, text encoder",
        help="Dropout of the text encoder's adapter; the UNet's if left empty.",
        minimum=0.0,
        maximum=0.9,
        advanced=True,
    )
    token: str = option(
        "sks",
        label="Token",
        help="""textual_inversion, pivotal: the word that is learned. It must be in the prompts,
        and is the name of the embedding's file.""",
    )
    initializer_token: str = option(
        "",
        label="Starting word",
        help="""textual_inversion, pivotal: a word whose meaning the token starts from, such as
        the class. Empty: random.""",
    )
    vectors: int = option(
        1,
        label="Vectors",
        help="textual_inversion, pivotal: how many tokens of a prompt the word takes.",
        minimum=1,
        maximum=64,
        advanced=True,
    )
