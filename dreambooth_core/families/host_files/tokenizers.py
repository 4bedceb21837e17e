"""Tokenizers of bases in the hosts' files, which hold none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dreambooth_core.bases.locate import is_on_hub
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Family
from dreambooth_core.families.clip_tokenizers import load_tokenizers
from dreambooth_core.families.components import Configs
from dreambooth_core.families.host_files.language import MISTRAL_CHAT
from dreambooth_core.families.host_files.texts import TEXT_KINDS, TextKind, kind_of, text_values
from dreambooth_core.families.transformer import readable

_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model", "tekken.json")
"""One of them is in a tokenizer's folder."""
MORE_WORDS = 8


def split_tokenizers(
    family: Family,
    where: str | None,
    configs: Configs,
    words: Mapping[str, Callable[[], bytes]] | None = None,
) -> list[Any]:
    """The tokenizers of a base in the hosts' files, one a text encoder.

    Args:
        where: ``base.tokenizer``: a folder or a hub id of one tokenizer, or of a whole model with
            folders for each. CLIP's comes with this program, unless such a folder has its own.
        words: what reads the tokenizer in a text encoder's file, by text encoder; a folder goes
            first.

    Raises:
        UserError: none is named, or it cannot be read; says where hosts keep it.
    """
    folder, words = None if where is None else _folder(where), words or {}
    return [
        _tokenizer(family, name, kind_of(family, text), folder, configs[text], words.get(text))
        for name, text in zip(family.tokenizers, family.text_encoders, strict=True)
    ]


def _tokenizer(
    family: Family,
    name: str,
    kind: TextKind,
    folder: Path | None,
    config: Mapping[str, Any],
    words: Callable[[], bytes] | None,
) -> Any:
    from transformers import AutoTokenizer

    place = None if folder is None else _place(folder, name, kind)
    if kind.own and place in (None, folder):
        return load_tokenizers(kind.own, None, [config])[0]
    if place is None and words is not None:
        return _STORED[kind.label](words())
    if place is None:
        own = kind.tokenizer
        comfyui = f"ComfyUI has {own} in its own folder, " if own else ""
        raise UserError(
            f"{family.label} needs the tokenizer of its {kind.label}, which no file of the hosts "
            "holds",
            where="base.tokenizer",
            do=f"Name a folder or a hub id. {comfyui}Forge and Forge Neo have one under "
            "backend/huggingface.",
        )
    if not any((place / file).is_file() for file in _FILES):
        raise UserError(
            f"there is no tokenizer in this folder (none of {', '.join(_FILES)})",
            where=f"base.tokenizer: {place}",
        )
    with readable(place):
        made = AutoTokenizer.from_pretrained(place, local_files_only=True)
    if kind.end in made.get_vocab():
        made.eos_token = kind.end
    most = int(text_values(config)["vocab_size"])
    # Some that ComfyUI has were made for models with a few more.
    if len(made) > most + MORE_WORDS:
        raise UserError(
            f"this tokenizer has {len(made):,} words, and the {kind.label} only "
            f"{most:,}: it belongs to another model",
            where=f"base.tokenizer: {place}",
        )
    for mark in family.marks:
        if len(made(mark, add_special_tokens=False).input_ids) != 1:
            raise UserError(
                f"this tokenizer does not know {mark}, which stands in the prompts of "
                f"{family.label}: it belongs to another model",
                where=f"base.tokenizer: {place}",
                do="Name the tokenizer of the model itself, or its hub id.",
            )
    if kind.chat:
        made.chat_template = kind.chat
    return made


def _mistral(data: bytes) -> Any:
    """Mistral's tokenizer of its own form, tekken: a JSON of byte pairs by their rank."""
    from transformers import PreTrainedTokenizerFast
    from transformers.integrations.mistral.tokenizer import MistralConverter

    with tempfile.TemporaryDirectory() as folder, readable("the tokenizer stored in this file"):
        file = Path(folder) / "tekken.json"
        file.write_bytes(data)
        made = MistralConverter(str(file)).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=MISTRAL_CHAT,
    )


def _gemma(data: bytes) -> Any:
    """Gemma's tokenizer of a SentencePiece model: a begin stands before every text."""
    from google.protobuf.message import DecodeError
    from transformers import AddedToken, GemmaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges, import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise UserError("the tokenizer stored in this file is damaged") from error
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    if not ids or "" in ids:
        raise UserError(f"the tokenizer stored in this file is {'damaged' if ids else 'empty'}")
    merges = generate_merges(ids, {piece.piece: piece.score for piece in model.pieces})
    made = GemmaTokenizer(ids, merges, padding_side="right")
    made.add_bos_token = True
    made.update_post_processor()
    # Those that are never cut, such as the marks of a conversation.
    whole = [piece.piece for piece in model.pieces if piece.type == piece.USER_DEFINED]
    made.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return made


_STORED: Mapping[str, Callable[[bytes], Any]] = {"Gemma 2": _gemma, "Mistral": _mistral}
"""What makes the tokenizer that is stored with a text encoder, by its kind."""


def _place(folder: Path, name: str, kind: TextKind) -> Path:
    """Where a tokenizer lies: in the folder of a whole model, in ComfyUI's folder of all its
    tokenizers, beside another of those, or where it was said."""
    own = Path(kind.tokenizer).name
    among = [folder / own] if own else []
    if own and folder.name in {Path(each.tokenizer).name for each in TEXT_KINDS}:
        among.append(folder.parent / own)
    return next((place for place in (folder / name, *among) if os.path.isdir(place)), folder)


def _folder(where: str) -> Path:
    path = Path(os.path.expanduser(where))
    if os.path.isdir(path):
        return path
    if not is_on_hub(where):
        raise UserError("there is no such folder", where=f"base.tokenizer: {where}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["tokenizer*", "tokenizer*/*", "vocab.*", "merges.txt", "spiece.model", "*.jinja"]
    try:
        return Path(snapshot_download(where, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            "the hub cannot be reached, has no such tokenizer, or keeps it private",
            where=f"base.tokenizer: {where}",
            do="Name a folder.",
        ) from error
