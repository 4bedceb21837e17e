"""The other parts of a base whose denoiser lies in a file of its own, out of a host's folders."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Family
from dreambooth_core.families.host_files.read import (
    TEXT_FOLDERS,
    VAE_FOLDERS,
    beside,
    pieces_in,
    unfit,
)
from dreambooth_core.families.host_files.texts import TextKind, canonical, kind_of, text_kind
from dreambooth_core.families.host_files.tokenizers import split_tokenizers
from dreambooth_core.families.host_files.vaes import vae_kind, vae_kind_of_class
from dreambooth_core.families.registry import denoiser_among
from dreambooth_core.formats.checkpoints.pieces import Piece

MOST_FILES = 1000
"""Files that are looked into, by their headers."""


@dataclass
class Parts:
    """What belongs to a denoiser; empty is what its own file holds."""

    family: str
    label: str
    text_encoders: list[str] = field(default_factory=list)
    vae: str = ""
    tokenizer: str = ""
    missing: list[str] = field(default_factory=list)
    """What is nowhere, each with the folder where hosts keep such files."""


def find_parts(
    path: Path, folders: Sequence[Path] = (), tokenizers: Sequence[Path] = ()
) -> Parts | None:
    """Looks for text encoders, an autoencoder and a tokenizer that fit a denoiser.

    Args:
        path: the denoiser's file; others in it are taken first.
        folders: where files of parts may lie, at any depth.
        tokenizers: folders of tokenizers, or of models with a ``tokenizer`` in each.

    Returns:
        None where the file is no denoiser of a known family.

    Raises:
        UserError: the file cannot be read.
    """
    pieces = pieces_in(path)
    known = denoiser_among(pieces)
    if known is None:
        return None
    family, files, denoiser = known
    config, _ = files.read(denoiser.shapes())
    inside = [piece for piece in pieces if piece is not denoiser]
    around = [*inside, *_pieces(folders)]
    found = Parts(family.name, family.label)
    configs: dict[str, dict[str, Any]] = {}
    for word in files.beside.values():
        try:
            beside(family, files, path, word)
        except UserError:
            found.missing.append(f"its {word} denoiser (beside it)")
    for name in family.text_encoders:
        kind = kind_of(family, name)
        for piece, its in _texts(inside if kind.within else around, kind):
            if unfit(family, files, name, its, config) is None:
                configs[name] = its
                if piece not in inside:
                    found.text_encoders.append(str(piece.path))
                break
        else:
            called = files.texts[name]
            found.missing.append(
                f"its {called}, which stands in the denoiser's file"
                if kind.within
                else f"its text encoder {called} (in {TEXT_FOLDERS})"
            )
    channels, wanted = files.latent_channels(config), vae_kind_of_class(family.classes["vae"])
    for piece in around:
        if vae_kind(piece.entries) is wanted and wanted.channels(piece.entries) == channels:
            if piece not in inside:
                found.vae = str(piece.path)
            break
    else:
        found.missing.append(f"its VAE (in {VAE_FOLDERS})")
    if len(configs) == len(family.text_encoders):
        _add_tokenizer(found, family, configs, tokenizers)
    return found


def _pieces(folders: Sequence[Path]) -> Iterator[Piece]:
    """The networks in the files of some folders, in the order of their names."""
    looked = 0
    for folder in folders:
        for home, names, files in os.walk(folder):
            names.sort()
            for name in sorted(files):
                if not name.endswith((".safetensors", ".sft")):
                    continue
                looked += 1
                if looked > MOST_FILES:
                    return
                try:
                    yield from pieces_in(Path(home) / name)
                except UserError:  # damaged, or quantised in a way that is not read
                    continue


def _texts(pieces: Sequence[Piece], kind: TextKind) -> Iterator[tuple[Piece, dict[str, Any]]]:
    """The whole text encoders of a kind, with their configurations."""
    for piece in pieces:
        if text_kind(piece.entries) is kind:
            try:
                config = kind.config(canonical(piece.shapes()))
            except (ArithmeticError, LookupError, TypeError, ValueError):  # not whole
                continue
            yield piece, config


def _add_tokenizer(
    found: Parts,
    family: Family,
    configs: Mapping[str, dict[str, Any]],
    folders: Sequence[Path],
) -> None:
    if not any(kind_of(family, name).tokenizer for name in family.text_encoders):
        return
    for folder in folders:
        try:
            split_tokenizers(family, str(folder), dict(configs))
        except (UserError, OSError, ValueError):  # another model's
            continue
        found.tokenizer = str(folder)
        return
    found.missing.append("its tokenizer (a folder of the host, or a hub id)")
