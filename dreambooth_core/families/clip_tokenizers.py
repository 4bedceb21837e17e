"""CLIP tokenizers without a network: the vocabulary comes with the package.

Every Stable Diffusion of the families here uses CLIP's byte-pair vocabulary; what differs is the
padding. OpenAI's CLIP pads with the end token, OpenCLIP with id 0, which the vocabulary calls
``!``. A single-file checkpoint holds no tokenizer at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_core.bases.embedded import embedded_folder
from dreambooth_core.disk import reading
from dreambooth_core.errors import UserError
from dreambooth_core.families.stable_diffusion.parts import OPENCLIP, TEXT_ENCODERS
from dreambooth_core.formats import folders
from dreambooth_core.formats.checkpoints.rules import refuse

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

ASSETS = embedded_folder() / "tokenizer"
"""The vocabulary that ships with the package, in the embedded base's folder, which stock diffusers
then loads as it is: ``vocab.json``, ``merges.txt`` and their settings."""

BEGIN = "<|startoftext|>"
END = "<|endoftext|>"
ZERO = "!"
STANDARD = 49408
"""Tokens of the vocabulary that ships with the package."""
WORDS = 1_000_000
"""More than any vocabulary has: the limit where no text encoder says its own."""
SHORTEST = 3
"""Tokens of the shortest context that has room for one beside begin and end."""

FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
OWN_FILES = (*FILES, "tokenizer.json", "added_tokens.json")
"""What a tokenizer folder of others may hold; nothing else is read or copied."""


def load_tokenizers(
    family: str,
    folder: str | Path | None = None,
    encoders: Sequence[Mapping[str, Any]] = (),
) -> list[CLIPTokenizer]:
    """A family's tokenizers, one for each text encoder.

    With ``folder`` (a diffusers folder) its own ``tokenizer`` and ``tokenizer_2`` are used where
    they exist; otherwise, and for single files, the vocabulary of this package.

    Where the padding is ``!``, a ``!`` in a prompt is still the token of that character (256),
    as in OpenCLIP and in every host. Transformers alone would read it as padding (0).

    With ``encoders``, the text encoders' configurations, no token is beyond an encoder's
    embeddings and no prompt beyond its positions.

    Raises:
        UserError: unknown family, or a tokenizer in ``folder`` that cannot be read.
    """
    if family not in TEXT_ENCODERS:
        raise UserError(f"no tokenizer is known for the family {family!r}")
    loaded = []
    for index, name in enumerate(TEXT_ENCODERS[family]):
        padding = padding_of(family, name)
        own = Path(folder) / tokenizer_name(name) if folder else None
        encoder = encoders[index] if index < len(encoders) else {}
        if own is not None and own.is_dir():
            made = _load(own, _padding_of(own, padding), encoder.get("vocab_size"))
        else:
            made = _load(ASSETS, padding)
        positions = int(encoder.get("max_position_embeddings", 77))
        made.model_max_length = min(made.model_max_length, positions)
        loaded.append(made)
    return loaded


def tokenizer_name(encoder: str) -> str:
    """The subfolder of a text encoder's tokenizer in a diffusers folder."""
    return encoder.replace("text_encoder", "tokenizer")


def padding_of(family: str, encoder: str) -> str:
    """The padding token of a text encoder."""
    return ZERO if (family, encoder) in OPENCLIP else END


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


def tokenizer_texts(folder: Path) -> dict[str, bytes]:
    """The files of a tokenizer folder that :func:`check_tokenizer` has let pass, by name."""
    return {
        name: folders.read_text(folder / name).encode()
        for name in OWN_FILES
        if folders.is_file(folder / name)
    }


def check_tokenizer(folder: Path, words: int) -> None:
    """Refuses a tokenizer whose vocabulary or merges are damaged: prompts would be read wrong.

    Args:
        folder: with ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.
        words: how many the text encoder knows; an id beyond them has no embedding.

    What has passed is not looked at again as long as its files stay as they are: a start comes here
    three times.

    Raises:
        UserError: names the file.
    """
    files = [folder / name for name in OWN_FILES]
    states = [os.stat(file) for file in files if folders.is_file(file)]
    _checked(folder, words, tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in states))


@lru_cache(maxsize=8)
def _checked(folder: Path, words: int, states: tuple[tuple[int, int, int], ...]) -> None:
    file = folder / "tokenizer_config.json"
    if folders.is_file(file):
        length = reading.read_json(file).get("model_max_length", 77)
        # Transformers writes 10^30 where there is no limit.
        if type(length) not in (int, float) or length < SHORTEST:
            raise UserError("model_max_length must be a number of tokens", where=file)
    pair = [folder / "vocab.json", folder / "merges.txt"]
    if all(folders.is_file(file) for file in pair):
        if all(reading.read_bytes(f, reading.MAX_JSON) == _asset(f.name) for f in pair):
            refuse(_out_of_range(range(STANDARD), words), pair[0])
            return  # CLIP's own, as in nearly every base
        vocabulary: Any = reading.read_json(pair[0])
        lines = folders.read_text(pair[1]).split("\n")
        # The first line tells the version; an empty one ends the file.
        merges = [line.rstrip("\r").split(" ") for line in lines[1:] if line.strip()]
        _check_words(vocabulary, merges, words, pair)
    elif folders.is_file(folder / "tokenizer.json"):
        file = folder / "tokenizer.json"
        model = reading.read_json(file).get("model")
        model = model if isinstance(model, dict) else {}
        found = model.get("merges")
        merges = [
            one.split(" ") if isinstance(one, str) else one
            for one in (found if isinstance(found, list) else [])
        ]
        _check_words(model.get("vocab"), merges, words, [file, file])
    else:
        # Transformers 5 would make an empty tokenizer out of this and say nothing.
        raise UserError("there is no vocabulary in this tokenizer folder", where=folder)


@cache
def _asset(name: str) -> bytes:
    return (ASSETS / name).read_bytes()


def _out_of_range(ids: Collection[int], words: int) -> Iterator[str]:
    if min(ids) < 0 or max(ids) >= words:
        yield (
            f"the vocabulary has numbers from {min(ids)} to {max(ids)}, and the text encoder "
            f"knows 0 to {words - 1}"
        )


def _check_words(vocabulary: Any, merges: list[Any], words: int, files: list[Path]) -> None:
    refuse(_faults_of_words(vocabulary, words), files[0])
    refuse(_faults_of_merges(merges, vocabulary), files[1])


def _faults_of_words(vocabulary: Any, words: int) -> Iterator[str]:
    if not isinstance(vocabulary, dict) or not all(type(i) is int for i in vocabulary.values()):
        yield "the vocabulary must give a whole number for each token"
    for lacking in (token for token in (BEGIN, END) if token not in vocabulary):
        yield f"the vocabulary lacks the token {lacking}"
    ids = set(vocabulary.values())
    if len(ids) < len(vocabulary):
        yield "two tokens of the vocabulary have one number"
    yield from _out_of_range(ids, words)


def _faults_of_merges(merges: list[Any], vocabulary: Mapping[str, int]) -> Iterator[str]:
    if not merges:
        yield "there are no merges"
    for pair in merges:
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) and part in vocabulary for part in pair)
            or "".join(pair) not in vocabulary
        ):
            yield f"the merge {str(pair)[:60]} is not of two tokens of the vocabulary that make one"


def _load(folder: Path, padding: str, words: int | None = None) -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    if folder != ASSETS:
        check_tokenizer(folder, words or WORDS)
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), pad_token=END, local_files_only=True)
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise UserError(f"this tokenizer cannot be read ({line})", where=folder) from error
    if padding != END:
        # Not through the property: that would make every "!" in a prompt a special token.
        tokenizer._special_tokens_map["pad_token"] = padding
    # A special token that is not in the vocabulary gets a number beyond the embeddings.
    for kind in ("bos_token", "eos_token", "pad_token") if folder != ASSETS else ():
        number = getattr(tokenizer, f"{kind}_id")
        if not isinstance(number, int) or not 0 <= number < (words or WORDS):
            raise UserError(f"its {kind} is not a token of the vocabulary", where=folder)
    return tokenizer


def _padding_of(folder: Path, default: str) -> str:
    """The padding token that a tokenizer's own files name."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not folders.is_file(folder / name):
            continue
        value = reading.read_json(folder / name).get("pad_token")
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            return value
    return default
