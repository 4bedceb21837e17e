"""Split Files: a base whose denoiser, text encoders and autoencoder lie in files of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError

from . import engine, host
from .description import BASE, PREFIX, Input, Node, Output, Result

NONE, AUTO = "(none)", "auto"
WHOLE = "(in the diffusion model's file)"


@dataclass(frozen=True)
class SplitBase:
    """The files of a base."""

    model: Path
    text_encoders: tuple[Path, ...]
    vae: Path | None
    tokenizer: Path | None

    @property
    def values(self) -> dict[str, Any]:
        """As the engine's configuration has them."""
        found: dict[str, Any] = {"base.model": str(self.model)}
        if self.text_encoders:
            found["base.text_encoders"] = [str(path) for path in self.text_encoders]
        if self.vae is not None:
            found["base.vae"] = str(self.vae)
        if self.tokenizer is not None:
            found["base.tokenizer"] = str(self.tokenizer)
        return found

    @property
    def files(self) -> Iterator[Path]:
        """Every file of weights."""
        yield self.model
        yield from self.text_encoders
        if self.vae is not None:
            yield self.vae


def gather(
    diffusion_model: str,
    text_encoder_1: str,
    text_encoder_2: str,
    vae: str,
    tokenizer: str,
    text_encoder_3: str = NONE,
    text_encoder_4: str = NONE,
    node_id: str | None = None,
) -> Result:
    """Runs Split Files. Raises ``UserError`` for a file that is gone, or is something else."""
    model = host.model_path("diffusion_models", diffusion_model)
    texts = tuple(
        host.model_path("text_encoders", name)
        for name in (text_encoder_1, text_encoder_2, text_encoder_3, text_encoder_4)
        if name not in (NONE, WHOLE)
    )
    lines = []
    wanted = ""
    for file in (model, *texts):
        told = engine.task("inspect", {"file": file})
        lines.append(f"{file.name}: {told.get('label')}")
        wanted = wanted or str(told.get("tokenizer") or "")
    place = _tokenizer(tokenizer, wanted)
    if place is not None:
        lines.append(f"tokenizer: {place}")
    base = SplitBase(model, texts, None if vae == WHOLE else host.model_path("vae", vae), place)
    return Result((base,), lines)


def _tokenizer(chosen: str, wanted: str) -> Path | None:
    """The folder of a tokenizer: as chosen, else the host's own for its text encoders."""
    folders = host.tokenizers()
    name = chosen if chosen != AUTO else Path(wanted).name
    if not name:
        return None
    if name not in folders:
        raise UserError(
            f"this ComfyUI has no tokenizer {name}",
            where="Split Files (DreamBooth), Tokenizer",
            do=f"Update ComfyUI, or choose one of {', '.join(folders) or 'none'}.",
        )
    return folders[name]


def look_at_files(**names: Any) -> str:
    """The fingerprint: of the files that are named."""
    facts = []
    for kind, key in KINDS.items():
        name = str(names.get(key, ""))
        try:
            found = host.model_path(kind.partition(":")[0], name).stat()
            facts.append(f"{found.st_size} {found.st_mtime_ns}")
        except (UserError, OSError):
            facts.append(name)
    return " ".join(facts)


KINDS = {
    "diffusion_models": "diffusion_model",
    "text_encoders:1": "text_encoder_1",
    "text_encoders:2": "text_encoder_2",
    "text_encoders:3": "text_encoder_3",
    "text_encoders:4": "text_encoder_4",
    "vae": "vae",
}
"""The host's kind of folder, with a number where two files are of one kind, and the input."""


def _text_encoders() -> list[str]:
    return [WHOLE, *host.model_names("text_encoders")]


BASE_INPUT = Input(
    "base",
    BASE,
    "Base",
    "A base in several files, from Split Files: it takes the place of the checkpoint.",
    optional=True,
)

SPLIT_FILES = Node(
    f"{PREFIX}BaseFiles",
    "Split Files (DreamBooth)",
    "Names a base whose parts lie in files of their own, such as Z-Image, Flux and Chroma. Shows "
    "what each file is.",
    (
        Input(
            "diffusion_model",
            "COMBO",
            "Diffusion model",
            "A file in models/diffusion_models.",
            choices=lambda: host.model_names("diffusion_models"),
        ),
        Input(
            "text_encoder_1",
            "COMBO",
            "Text encoder",
            "A file in models/text_encoders.",
            WHOLE,
            choices=_text_encoders,
        ),
        Input(
            "text_encoder_2",
            "COMBO",
            "Second text encoder",
            "Flux.1 has two: CLIP-L and T5. Stable Diffusion 3 has three. Other models have one.",
            NONE,
            choices=lambda: [NONE, *host.model_names("text_encoders")],
        ),
        Input(
            "vae",
            "COMBO",
            "VAE",
            "A file in models/vae.",
            WHOLE,
            choices=lambda: [WHOLE, *host.model_names("vae")],
        ),
        Input(
            "tokenizer",
            "COMBO",
            "Tokenizer",
            "No model file holds one. auto: ComfyUI's own for this text encoder.",
            AUTO,
            choices=lambda: [AUTO, *host.tokenizers()],
        ),
        Input(
            "text_encoder_3",
            "COMBO",
            "Third text encoder",
            "Stable Diffusion 3 and 3.5 have three: CLIP-L, CLIP-G and T5.",
            NONE,
            choices=lambda: [NONE, *host.model_names("text_encoders")],
        ),
        Input(
            "text_encoder_4",
            "COMBO",
            "Fourth text encoder",
            "HiDream has four: CLIP-L, CLIP-G, T5 and Llama.",
            NONE,
            choices=lambda: [NONE, *host.model_names("text_encoders")],
        ),
    ),
    (Output(BASE, "BASE", "For Train LoRA."),),
    gather,
    is_output=True,
    fingerprint=look_at_files,
)

NODES = (SPLIT_FILES,)
