"""A base in the hosts' files: denoiser, text encoders and autoencoder, each alone or all in one.

Everything is found out, and every weight's place and shape is checked, from the files' headers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Components, Family
from dreambooth_core.families.host_language import WORDS
from dreambooth_core.families.host_texts import TextKind, canonical, kind_of, text_kind, text_values
from dreambooth_core.families.host_vaes import vae_kind, vae_kind_of_class
from dreambooth_core.families.hosts import HostFiles
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats import gguf
from dreambooth_core.formats.checkpoints.build import names_of
from dreambooth_core.formats.checkpoints.folder_layout import read_config, read_weights
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.checkpoints.pieces import Piece, gguf_pieces, pieces_of
from dreambooth_core.formats.detect import describe
from dreambooth_core.formats.folders import is_folder

TEXT_FOLDERS = "models/text_encoders in ComfyUI, models/text_encoder in Forge and Forge Neo"
VAE_FOLDERS = "models/vae in ComfyUI, models/VAE in Forge and Forge Neo"
_LETTERS = re.compile(r"[^a-z0-9.]")
FIRST = "decoder.conv_in.weight"
"""diffusers' name of the weight whose inputs are the latents' channels."""

Tensors = Mapping[str, Tensor]


@dataclass
class SplitParts(ModelParts):
    """A base of the hosts' files: its components hold shapes, on the meta device."""

    settings: dict[str, Any] = field(default_factory=dict)
    """What ``model_index.json`` would say beside the parts."""
    readers: dict[str, Callable[[], dict[str, Tensor]]] = field(default_factory=dict)
    """What reads each network's weights, in diffusers' names."""
    words: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    """What reads the tokenizer that stands in a text encoder's file, where one does."""


def pieces_in(path: Path) -> list[Piece]:
    """The networks in a file; none where it is no safetensors and no GGUF file.

    Raises:
        UserError: the system does not let it be read; else as
            :func:`~dreambooth_core.formats.checkpoints.pieces.pieces_of`.
    """
    if is_folder(path):
        return []
    try:
        with open_regular(path) as file:
            begin = file.read(9)
    except OSError as error:
        what = f"this file cannot be read: {error.strerror or error}"
        raise UserError(what, where=path) from error
    if begin.startswith(gguf.MAGIC):
        return gguf_pieces(path)
    return pieces_of(path) if begin[8:] == b"{" else []


def read_split(
    options: BaseOptions, family: Family, denoiser: Piece, others: Sequence[Piece]
) -> SplitParts:
    """A base whose denoiser was recognised, with the parts that the options name.

    Args:
        options: the ``base`` section.
        family: the denoiser's.
        others: what else lies in the denoiser's file.

    Raises:
        UserError: a part is missing, damaged or another family's: says which, and where hosts
            keep it.
    """
    files = family.files
    if files is None:
        raise ValueError(f"no files are known of {family.name}")
    stored = SplitParts(family.name, {}, {})
    _add(stored, family, family.denoiser, denoiser, files.config, files.to_diffusers)
    for name, word in files.beside.items():
        piece = beside(family, files, denoiser.path, word)
        _add(stored, family, name, piece, files.config, files.to_diffusers)
    config = stored.components[family.denoiser].config
    stored.scheduler = files.scheduler(denoiser.path.name, config)
    stored.settings = files.settings(denoiser.path.name)
    _add_texts(stored, options, family, files, denoiser, others)
    _add_vae(stored, options, family, files, others)
    return stored


def beside(family: Family, files: HostFiles, path: Path, word: str) -> Piece:
    """The companion of a denoiser: the file beside it that has a word more in its name, or else
    the first one with that word."""
    if word in path.name.lower():
        raise UserError(
            f"this is the {word} denoiser of {family.label}, which never sees a prompt",
            where=f"base.model: {path}",
            do=f"Name the other one: this one is found beside it by the word {word}.",
        )
    named = [each for each in sorted(path.parent.iterdir()) if word in each.name.lower()]
    named.sort(
        key=lambda each: (
            _LETTERS.sub("", each.name.lower().replace(word, ""))
            != _LETTERS.sub("", path.name.lower())
        )
    )
    for each in named:
        for piece in pieces_in(each) if each.is_file() else ():
            if files.fits(piece.entries):
                return piece
    raise UserError(
        f"{family.label} also needs its {word} denoiser, in a file of its own",
        where=f"base.model: {path.parent}",
        do=f"Put it there with the word {word} in its name; hosts keep it in "
        "models/diffusion_models.",
    )


def _add_texts(
    stored: SplitParts,
    options: BaseOptions,
    family: Family,
    files: HostFiles,
    denoiser: Piece,
    inside: Sequence[Piece],
) -> None:
    found = [(piece, kind) for piece in inside if (kind := text_kind(piece.entries))]
    named = []
    for text in options.text_encoders:
        path = _path(text, "base.text_encoders")
        known = [(piece, kind) for piece in pieces_in(path) if (kind := text_kind(piece.entries))]
        if not known:
            raise UserError(
                f"{describe(path)}; no text encoder that is known is in it",
                where=f"base.text_encoders: {text}",
                do=f"Name a .safetensors file; hosts keep it in {TEXT_FOLDERS}.",
            )
        named += known
    config = stored.components[family.denoiser].config
    for name in family.text_encoders:
        kind = kind_of(family, name)
        fitting = [piece for piece, its in (*named, *found) if its is kind]
        if not fitting and kind.within:
            raise UserError(
                f"this denoiser lacks the {files.texts[name]} of {family.label}, which stands in "
                "the same file: it is another model, such as Cosmos-Predict2, or not whole",
                where=f"base.model: {denoiser.path}",
            )
        if not fitting:
            others = ", ".join(dict.fromkeys(its.label for _, its in named))
            raise UserError(
                f"{family.label} also needs its text encoder {files.texts[name]}, in a file of "
                f"its own{f'; named is {others}' * bool(others)}",
                where="base.text_encoders",
                do=f"Name the file; hosts keep it in {TEXT_FOLDERS}.",
            )
        if len([1 for _, its in named if its is kind]) > 1:
            raise UserError(
                f"{len(fitting)} text encoders are {kind.label}, and {family.label} has one",
                where="base.text_encoders",
                do="Name one.",
            )
        _add_text(stored, family, name, kind, fitting[0])
        _check_text(stored.components[name].config, files, name, kind, fitting[0], family, config)
    used = {kind_of(family, name).label for name in family.text_encoders}
    for piece, kind in named:
        if kind.label not in used:
            raise UserError(
                f"this is a {kind.label} text encoder, and {family.label} has none",
                where=f"base.text_encoders: {piece.path}",
                do=f"It needs {' and '.join(files.texts.values())}.",
            )


def _check_text(
    config: Mapping[str, Any],
    files: HostFiles,
    name: str,
    kind: TextKind,
    piece: Piece,
    family: Family,
    denoiser: Mapping[str, Any],
) -> None:
    values = text_values(config)
    width, wanted = int(values[kind.width]), files.text_width(name, denoiser)
    least = files.text_tokens.get(name, 0)
    if wanted not in (None, width):
        what = (
            f"this {kind.label} is {width:,} wide, and the denoiser was made for {wanted:,}: it "
            "belongs to another model"
        )
    elif least and int(values["max_position_embeddings"]) < least:
        tokens = int(values["max_position_embeddings"])
        what = f"this {kind.label} reads {tokens} tokens, and {family.label} gives it {least}"
    else:
        return
    raise UserError(
        what,
        where=f"base.text_encoders: {piece.path}",
        do=f"This {family.label} needs {files.texts[name]}.",
    )


def _add_text(stored: SplitParts, family: Family, name: str, kind: TextKind, piece: Piece) -> None:
    as_class = family.classes[name].rpartition(".")[2]

    def config(tensors: Tensors) -> dict[str, Any]:
        return {**kind.config(canonical(tensors)), "architectures": [as_class]}

    def rename(tensors: Tensors) -> dict[str, Tensor]:
        return kind.rename(as_class, canonical(tensors))

    _add(stored, family, name, piece, config, rename, own=True)
    inside = next((each for each in WORDS if each in piece.entries), None)
    if inside is not None:
        stored.words[name] = lambda: piece.one(inside).numpy().tobytes()


def _add_vae(
    stored: SplitParts,
    options: BaseOptions,
    family: Family,
    files: HostFiles,
    inside: Sequence[Piece],
) -> None:
    pieces = list(inside)
    if options.vae:
        path = _path(options.vae, "base.vae")
        if is_folder(path):
            folder = path / "vae" if os.path.isdir(path / "vae") else path
            weights, found_config = read_weights(folder), read_config(folder)
            _check_channels(stored, family, files, weights, path)
            _check(family.empty("vae", found_config), weights, f"VAE of {family.label}", folder)
            stored.components["vae"] = Component(found_config, weights)
            stored.readers["vae"] = lambda: weights
            return
        pieces = pieces_in(path)
    known = [(piece, kind) for piece in pieces if (kind := vae_kind(piece.entries))]
    if not known and options.vae:
        raise UserError(f"{describe(path)}; there is no VAE in it", where=f"base.vae: {path}")
    if not known:
        raise UserError(
            f"{family.label} also needs its VAE, in a file of its own",
            where="base.vae",
            do=f"Name the file; hosts keep it in {VAE_FOLDERS}.",
        )
    found, kind = known[0]
    wanted = vae_kind_of_class(family.classes["vae"])
    if kind is not wanted:
        raise UserError(
            f"this is a VAE of {kind.label}, and {family.label} has one of {wanted.label}: it "
            "belongs to another model",
            where=f"base.vae: {found.path}",
        )

    def config(tensors: Tensors) -> dict[str, Any]:
        name = family.classes["vae"].rpartition(".")[2]
        return {**kind.config(tensors), **files.latents, "_class_name": name}

    def rename(tensors: Tensors) -> dict[str, Tensor]:
        return kind.rename(tensors, found.path)

    first = found.shapes().get(kind.first)
    _check_channels(stored, family, files, {} if first is None else {FIRST: first}, found.path)
    _add(stored, family, "vae", found, config, rename)


def _check_channels(
    stored: SplitParts, family: Family, files: HostFiles, tensors: Tensors, where: Path
) -> None:
    first = tensors.get(FIRST)
    channels = 0 if first is None or first.dim() < 2 else first.shape[1]
    wanted = int(stored.components[family.denoiser].config["in_channels"]) // files.patch
    if channels != wanted:
        raise UserError(
            f"this VAE has {channels} latent channels, and the denoiser was made for {wanted}: "
            "it belongs to another model",
            where=f"base.vae: {where}",
        )


def _add(
    stored: SplitParts,
    family: Family,
    name: str,
    piece: Piece,
    config: Callable[[Tensors], dict[str, Any]],
    rename: Callable[[Tensors], dict[str, Tensor]],
    *,
    own: bool = False,
) -> None:
    """Adds one network of a file, if every weight that it needs is there in its shape.

    Args:
        own: the configuration follows from the names in the file and not from diffusers'.
    """
    shapes = piece.shapes()
    what = "VAE" if name == "vae" else name.replace("_", " ")
    try:
        renamed = rename(shapes)
        found = config(shapes if own or name == "vae" else renamed)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"this is not a whole {what} of {family.label} ({' '.join(str(error).split())[:100]} "
            "is missing or of another shape)",
            where=piece.path,
            do="Download or copy it again.",
        ) from error
    _check(family.empty(name, found), renamed, f"{what} of {family.label}", piece.path)
    stored.components[name] = Component(found, renamed)
    stored.readers[name] = lambda: rename(piece.tensors())


def _check(model: nn.Module, tensors: Tensors, what: str, where: Path) -> None:
    own = model.state_dict()
    there = names_of(own, tensors)
    for name, tensor in own.items():
        if name not in there:
            if name.endswith(OPTIONAL):
                continue
            line = f"{name} is missing"
        elif there[name].shape != tensor.shape:
            line = f"{name} has the shape {list(there[name].shape)}, not {list(tensor.shape)}"
        else:
            continue
        raise UserError(f"this is not a whole {what}: {line}", where=where)
    strange = next(
        (name for name in there if name not in own and not name.endswith(OPTIONAL)), None
    )
    if strange is not None:
        raise UserError(f"this is not a {what} that is known: {strange} has no place", where=where)


OPTIONAL = ("num_batches_tracked", "position_ids")
"""Ends of values that are no weights."""


def fill(model: nn.Module, tensors: Tensors) -> None:
    """Gives a network its weights, which :func:`read_split` has checked."""
    model.load_state_dict(names_of(model.state_dict(), tensors), strict=False, assign=True)
    tie: Callable[[], None] | None = getattr(model, "tie_weights", None)
    if tie is not None:
        tie()


def put_denoiser(parts: Components, path: Path) -> None:
    """Gives a base the denoiser of a hosts' file, such as the file that a full run leaves.

    Raises:
        UserError: there is none of this family in it, or it is of another shape.
    """
    family, files = parts.family, parts.family.files
    fitting = (p for p in pieces_in(path) if files is not None and files.fits(p.entries))
    piece = next(fitting, None)
    if piece is None or files is None:
        raise UserError(f"there is no denoiser of {family.label} in this file", where=path)
    tensors = files.to_diffusers(piece.tensors())
    _check(parts.denoiser, tensors, f"{family.denoiser} of {family.label}", path)
    dtype = next(parts.denoiser.parameters()).dtype
    fill(parts.denoiser, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def _path(text: str, where: str) -> Path:
    path = Path(os.path.expanduser(text))
    if not os.path.exists(path):
        raise UserError("there is no such file or folder", where=f"{where}: {text}")
    return path
