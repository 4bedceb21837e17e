"""CLIP tokenizers without a network: the vocabulary comes with the package.

Every Stable Diffusion of the families here uses CLIP's byte-pair vocabulary; what differs is the
padding. OpenAI's CLIP pads with the end token, OpenCLIP with id 0, which the vocabulary calls
``!``. A single-file checkpoint holds no tokenizer at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.errors import UserError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "clip_tokenizer"
"""The vocabulary that ships with the package: ``vocab.json``, ``merges.txt`` and their settings."""

END = "<|endoftext|>"
ZERO = "!"

PADDING: dict[str, tuple[str, ...]] = {
    "sd1": (END,),
    "sd2": (ZERO,),
    "sdxl": (END, ZERO),
    "sdxl_refiner": (ZERO,),
}
"""The padding token of each of a family's tokenizers, in the order of its text encoders."""

FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


def load_tokenizers(family: str, folder: str | Path | None = None) -> list[CLIPTokenizer]:
    """A family's tokenizers, one for each text encoder.

    With ``folder`` (a diffusers folder) its own ``tokenizer`` and ``tokenizer_2`` are used where
    they exist; otherwise, and for single files, the vocabulary of this package.

    Where the padding is ``!``, a ``!`` in a prompt is still the token of that character (256),
    as in OpenCLIP and in every host. Transformers alone would read it as padding (0).

    Raises:
        UserError: unknown family, or a tokenizer in ``folder`` that cannot be read.
    """
    if family not in PADDING:
        raise UserError(f"no tokenizer is known for the family {family!r}")
    loaded = []
    for index, padding in enumerate(PADDING[family]):
        own = Path(folder) / tokenizer_name(family, index) if folder else None
        if own is not None and own.is_dir():
            loaded.append(_load(own, _padding_of(own, padding)))
        else:
            loaded.append(_load(ASSETS, padding))
    return loaded


def tokenizer_name(family: str, index: int) -> str:
    """The subfolder of a family's tokenizer number ``index`` in a diffusers folder."""
    number = index + 1 if family != "sdxl_refiner" else 2
    return "tokenizer" if number == 1 else f"tokenizer_{number}"


def tokenizer_files(padding: str, *, max_length: int = 77) -> dict[str, bytes]:
    """The files of a tokenizer folder as every transformers version reads them, old and new.

    Args:
        padding: the padding token, :data:`END` or :data:`ZERO`.
        max_length: the text encoder's context length in tokens.
    """
    files = {name: (ASSETS / name).read_bytes() for name in FILES}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        values: dict[str, Any] = json.loads(files[name])
        values["pad_token"] = padding
        if "model_max_length" in values:
            values["model_max_length"] = max_length
        files[name] = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
    return files


def _load(folder: Path, padding: str) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not (files >= {"vocab.json", "merges.txt"} or "tokenizer.json" in files):
        # Transformers 5 would make an empty tokenizer out of this and say nothing.
        raise UserError("there is no vocabulary in this tokenizer folder", where=folder)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), pad_token=END, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"this tokenizer cannot be read ({error})", where=folder) from error
    if padding != END:
        # Not through the property: that would make every "!" in a prompt a special token.
        tokenizer._special_tokens_map["pad_token"] = padding
    return tokenizer


def _padding_of(folder: Path, default: str) -> str:
    """The padding token that a tokenizer's own files name."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        try:
            value = json.loads((folder / name).read_text("utf-8")).get("pad_token")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return default
