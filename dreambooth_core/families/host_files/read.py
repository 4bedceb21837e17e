"""A base in the hosts' files: denoiser, text encoders and autoencoder, each alone or all in one.

Everything is found out, and every weight's place and shape is checked, from the files' headers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from dreambooth_core.disk.reading import open_regular
from dreambooth_core.errors import UserError
from dreambooth_core.families.base import Family
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files.language import WORDS
from dreambooth_core.families.host_files.record import HostFiles
from dreambooth_core.families.host_files.texts import TextKind, kind_of, text_kind, text_values
from dreambooth_core.families.host_files.vaes import vae_kind, vae_kind_of_class
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.recognition.detect import describe
from dreambooth_core.formats import gguf
from dreambooth_core.formats.checkpoints.folder_layout import read_config, read_weights
from dreambooth_core.formats.checkpoints.networks import names_of
from dreambooth_core.formats.checkpoints.parts import Component, ModelParts
from dreambooth_core.formats.checkpoints.pieces import Piece, gguf_pieces, pieces_of
from dreambooth_core.formats.folders import is_folder

TEXT_FOLDERS = "models/text_encoders in ComfyUI, models/text_encoder in Forge and Forge Neo"
VAE_FOLDERS = "models/vae in ComfyUI, models/VAE in Forge and Forge Neo"
_LETTERS = re.compile(r"[^a-z0-9.]")

Tensors = Mapping[str, Tensor]
Read = Callable[[Tensors], tuple[dict[str, Any], dict[str, Tensor]]]
"""A network's configuration and its weights in diffusers' names, from those in a file."""


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
    options: BaseOptions,
    family: Family,
    files: HostFiles,
    denoiser: Piece,
    others: Sequence[Piece],
) -> SplitParts:
    """A base whose denoiser was recognised, with the parts that the options name.

    Args:
        others: what else lies in the denoiser's file.

    Raises:
        UserError: a part is missing, damaged or another family's: says which, and where hosts
            keep it.
    """
    base = _Base(options, family, files, SplitParts(family.name, {}, {}))
    base.add(family.denoiser, denoiser, files.read)
    for name, word in files.beside.items():
        base.add(name, beside(family, files, denoiser.path, word), files.read)
    base.stored.scheduler = files.scheduler(denoiser.path.name, base.denoiser)
    base.stored.settings = files.settings(denoiser.path.name)
    base.add_texts(denoiser, others)
    base.add_vae(others)
    return base.stored


def beside(family: Family, files: HostFiles, path: Path, word: str) -> Piece:
    """The companion of a denoiser: the file beside it that has a word more in its name, or else
    the first one with that word."""
    if word in path.name.lower():
        raise UserError(
            f"this is the {word} denoiser of {family.label}, which never sees a prompt",
            where=f"base.model: {path}",
            do=f"Name the other one: this one is found beside it by the word {word}.",
        )
    own = _LETTERS.sub("", path.name.lower())
    named = [each for each in sorted(path.parent.iterdir()) if word in each.name.lower()]
    named.sort(key=lambda each: _LETTERS.sub("", each.name.lower().replace(word, "")) != own)
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


@dataclass(frozen=True)
class _Base:
    """A base that is put together."""

    options: BaseOptions
    family: Family
    files: HostFiles
    stored: SplitParts

    @property
    def denoiser(self) -> Mapping[str, Any]:
        """Its configuration."""
        return self.stored.components[self.family.denoiser].config

    def add(self, name: str, piece: Piece, read: Read) -> None:
        """Adds one network of a file, if every weight that it needs is there in its shape."""
        what = f"{'VAE' if name == 'vae' else name.replace('_', ' ')} of {self.family.label}"
        try:
            config, renamed = read(piece.shapes())
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(
                f"this is not a whole {what} ({' '.join(str(error).split())[:100]} "
                "is missing or of another shape)",
                where=piece.path,
                do="Download or copy it again.",
            ) from error
        _check(self.family.empty(name, config), renamed, what, piece.path)
        self.stored.components[name] = Component(config, renamed)
        self.stored.readers[name] = lambda: read(piece.tensors())[1]

    def add_texts(self, denoiser: Piece, inside: Sequence[Piece]) -> None:
        """Adds the text encoders, from the denoiser's file and those that are named."""
        family, files = self.family, self.files
        named = []
        for text in self.options.text_encoders:
            path = there(text, "base.text_encoders")
            known = _known(pieces_in(path))
            if not known:
                raise UserError(
                    f"{describe(path)}; no text encoder that is known is in it",
                    where=f"base.text_encoders: {text}",
                    do=f"Name a .safetensors file; hosts keep it in {TEXT_FOLDERS}.",
                )
            named += known
        kinds = {name: kind_of(family, name) for name in family.text_encoders}
        for name, kind in kinds.items():
            fitting = [piece for piece, its in (*named, *_known(inside)) if its is kind]
            if not fitting and kind.within:
                raise UserError(
                    f"this denoiser lacks the {files.texts[name]} of {family.label}, which stands "
                    "in the same file: it is another model, such as Cosmos-Predict2, or not whole",
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
            if sum(its is kind for _, its in named) > 1:
                raise UserError(
                    f"{len(fitting)} text encoders are {kind.label}, and {family.label} has one",
                    where="base.text_encoders",
                    do="Name one.",
                )
            self._add_text(name, kind, fitting[0])
        for piece, kind in named:
            if kind not in kinds.values():
                raise UserError(
                    f"this is a {kind.label} text encoder, and {family.label} has none",
                    where=f"base.text_encoders: {piece.path}",
                    do=f"It needs {' and '.join(files.texts.values())}.",
                )

    def _add_text(self, name: str, kind: TextKind, piece: Piece) -> None:
        self.add(name, piece, partial(kind.read, self.family.classes[name].rpartition(".")[2]))
        config = self.stored.components[name].config
        wrong = unfit(self.family, self.files, name, config, self.denoiser)
        if wrong:
            raise UserError(
                wrong,
                where=f"base.text_encoders: {piece.path}",
                do=f"This {self.family.label} needs {self.files.texts[name]}.",
            )
        inside = next((each for each in WORDS if each in piece.entries), None)
        if inside is not None:
            self.stored.words[name] = lambda: piece.one(inside).numpy().tobytes()

    def add_vae(self, inside: Sequence[Piece]) -> None:
        """Adds the autoencoder that is named, or else the one in the denoiser's file."""
        family, pieces = self.family, inside
        if self.options.vae:
            path = there(self.options.vae, "base.vae")
            if is_folder(path):
                self._add_vae_folder(path)
                return
            pieces = pieces_in(path)
        known = [(piece, kind) for piece in pieces if (kind := vae_kind(piece.entries))]
        if not known and self.options.vae:
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
        self._check_channels(kind.channels(found.entries), found.path)
        facts = {**self.files.latents, "_class_name": family.classes["vae"].rpartition(".")[2]}

        def read(tensors: Tensors) -> tuple[dict[str, Any], dict[str, Tensor]]:
            renamed = kind.rename(tensors, found.path)
            return {**kind.config(tensors), **facts}, renamed

        self.add("vae", found, read)

    def _add_vae_folder(self, path: Path) -> None:
        folder = path / "vae" if os.path.isdir(path / "vae") else path
        weights, config = read_weights(folder), read_config(folder)
        first = weights.get("decoder.conv_in.weight")
        channels = 0 if first is None or first.dim() < 2 else first.shape[1]
        self._check_channels(channels, path)
        what = f"VAE of {self.family.label}"
        _check(self.family.empty("vae", config), weights, what, folder)
        self.stored.components["vae"] = Component(config, weights)
        self.stored.readers["vae"] = lambda: weights

    def _check_channels(self, channels: int, where: Path) -> None:
        wanted = self.files.latent_channels(self.denoiser)
        if channels != wanted:
            raise UserError(
                f"this VAE has {channels} latent channels, and the denoiser was made for "
                f"{wanted}: it belongs to another model",
                where=f"base.vae: {where}",
            )


def _known(pieces: Sequence[Piece]) -> list[tuple[Piece, TextKind]]:
    return [(piece, kind) for piece in pieces if (kind := text_kind(piece.entries))]


def unfit(
    family: Family,
    files: HostFiles,
    name: str,
    config: Mapping[str, Any],
    denoiser: Mapping[str, Any],
) -> str | None:
    """Why a text encoder of the right kind is another model's; None where it fits a denoiser."""
    kind, values = kind_of(family, name), text_values(config)
    width, wanted = int(values[kind.width]), files.text_width(name, denoiser)
    if wanted not in (None, width):
        return (
            f"this {kind.label} is {width:,} wide, and the denoiser was made for {wanted:,}: it "
            "belongs to another model"
        )
    least = files.text_tokens.get(name, 0)
    if least and (tokens := int(values["max_position_embeddings"])) < least:
        return f"this {kind.label} reads {tokens} tokens, and {family.label} gives it {least}"
    return None


def _check(model: nn.Module, tensors: Tensors, what: str, where: Path) -> None:
    own = model.state_dict()
    there = names_of(own, tensors)
    for name, tensor in own.items():
        if name in there and there[name].shape != tensor.shape:
            line = f"{name} has the shape {list(there[name].shape)}, not {list(tensor.shape)}"
        elif name not in there and not name.endswith(OPTIONAL):
            line = f"{name} is missing"
        else:
            continue
        raise UserError(f"this is not a whole {what}: {line}", where=where)
    strange = [name for name in there if name not in own and not name.endswith(OPTIONAL)]
    if strange:
        line = f"{strange[0]} has no place"
        raise UserError(f"this is not a {what} that is known: {line}", where=where)


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


def there(text: str, where: str) -> Path:
    """A path as it was written. Raises ``UserError`` where nothing is there."""
    path = Path(os.path.expanduser(text))
    if not os.path.exists(path):
        raise UserError("there is no such file or folder", where=f"{where}: {text}")
    return path
