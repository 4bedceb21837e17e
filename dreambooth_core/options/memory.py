"""Options of memory: what saves it, and what that costs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dreambooth_core.config.fields import advanced, option
from dreambooth_core.errors import UserError

AUTO = "auto"
FASTEST = "fastest"
ON = "on"
GIB = 1024**3
QUANTIZED = ("no", "int8", "fp8", "nf4")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(gb|gib|mb|mib)", re.IGNORECASE)


@dataclass
class MemoryOptions:
    """What saves memory, and what it costs."""

    budget: str = option(
        "auto",
        label="Memory budget",
        help="""Memory that the run may take: auto (what the GPU has free; on a CPU nothing is
        changed) or a size such as 8GB. The run is fitted into it by the settings that cost least;
        what you set yourself stays.""",
    )
    gradient_checkpointing: bool = option(
        False, help="Recomputes activations in the backward pass: much less memory, a third slower."
    )
    attention: str = advanced(
        "auto",
        help="""The attention implementation. auto takes the first that works here: xformers,
        PyTorch's own (sdpa), or the chunked one that needs little memory anywhere. fastest tries
        those of PyTorch (flash, cuDNN, efficient) and xformers at the run's own sizes first, for a
        few seconds, and remembers what won.""",
        choices=("auto", FASTEST, "xformers", "sdpa", "chunked"),
    )
    channels_last: str = advanced(
        AUTO,
        help="""How the frozen convolutions' weights lie in memory: on (the order that a GPU's
        tensor cores read in half precision), off, or auto, which tries both for two steps on such
        a GPU and remembers what won. Networks without convolutions have nothing to arrange.""",
        choices=(AUTO, ON, "off"),
    )
    tf32: bool = advanced(
        False,
        label="TF32",
        help="Faster matrix products on NVIDIA GPUs since Ampere, slightly less exact.",
    )
    quantize: str = advanced(
        "no",
        label="Quantise the base",
        help="""Keep the linear layers of the frozen base in 8 bits (int8; fp8 for files that are
        fp8 already, which stay exactly as they are) or 4 bits (nf4): a half or a quarter of fp16's
        memory, slightly less exact. For adapters and embeddings only.""",
        choices=QUANTIZED,
    )
    stream: str = advanced(
        "auto",
        label="Stream from RAM",
        help="""The share of the denoiser's blocks that lies in RAM and comes to the GPU ahead of
        its use: off, a number from 0 to 1, or auto (as much as the memory budget needs). Slower
        steps; what is learned is the same. Full fine-tuning needs the fused backward pass.""",
    )
    compile: bool = advanced(
        False,
        help="""Compile the denoiser's repeated blocks with torch.compile: a minute or more at the
        start, faster steps on a GPU; needs Triton there, and on a CPU a C++ compiler.""",
    )

    cuda_graphs: bool = advanced(
        False,
        label="CUDA graphs",
        help="""Record the compiled blocks' work once and replay it: faster where an NVIDIA GPU
        waits for the processor, as with a small model or batch. Needs more memory, Compile, and
        images of one size.""",
    )

    @property
    def limit(self) -> int | None:
        """Bytes of the budget, such as ``8GB``, ``7.5 GB`` or ``7500MB``; None for ``auto``. As on
        graphics cards, a GB has 1024³ bytes.

        Raises:
            UserError: it is no size.
        """
        text = self.budget.strip()
        if text.lower() == AUTO:
            return None
        match = _SIZE.fullmatch(text)
        size = int(float(match[1]) * (GIB if match[2][0] in "gG" else 1024**2)) if match else 0
        if not 1024**2 <= size <= 100_000 * GIB:
            raise UserError(
                f"{self.budget!r} is not an amount of memory",
                where="memory.budget",
                do="Write auto, or a size such as 8GB.",
            )
        return size

    @property
    def share(self) -> float:
        """The share of the denoiser's blocks that lies in RAM, 0 to 1. Of ``auto`` it is 0: a
        budget that needs more puts a number in its place.

        Raises:
            UserError: it is neither a share nor a word that stands for one.
        """
        word = self.stream.strip().lower()
        if word in (AUTO, "off"):
            return 0.0
        try:
            share = float(word)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise UserError(
                f"{self.stream!r} is not a share of the blocks",
                where="memory.stream",
                do="Write off, auto, or a number from 0 to 1.",
            )
        return share
