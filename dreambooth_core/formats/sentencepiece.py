"""Tokenizers that ComfyUI stores with a text encoder: SentencePiece's model as bytes.

The format is a protocol buffer, ``sentencepiece_model.proto`` of
https://github.com/google/sentencepiece; of it the pieces alone are read, in the order of their ids.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from dreambooth_core.errors import UserError

_PIECES, _TEXT, _SCORE, _KIND = 1, 1, 2, 3
_OF_ITS_OWN = 4
"""The kind of a piece that is never cut, such as the marks of a conversation."""
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


class Piece(NamedTuple):
    """One piece of text."""

    text: str
    score: float
    whole: bool
    """Whether it is never cut."""


def pieces(data: bytes) -> list[Piece]:
    """Every piece, by its id.

    Raises:
        UserError: the bytes are no such model.
    """
    found = []
    try:
        for field, value in _fields(data):
            if field == _PIECES and isinstance(value, bytes):
                inner = dict(_fields(value))
                text, score = inner[_TEXT], inner.get(_SCORE, bytes(4))
                if isinstance(text, bytes) and isinstance(score, bytes):
                    number = float(struct.unpack("<f", score)[0])
                    whole = inner.get(_KIND) == _OF_ITS_OWN
                    found.append(Piece(text.decode("utf-8"), number, whole))
    except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
        raise UserError("the tokenizer stored in this file is damaged") from error
    if not found:
        raise UserError("the tokenizer stored in this file is empty")
    return found


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The numbers and values of a message's fields."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        else:
            size = {_EIGHT: 8, _FOUR: 4}[kind]
        if at + size > len(data):
            raise IndexError("beyond the end")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where what follows begins."""
    found = shift = 0
    while True:
        byte = data[at]
        found |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return found, at
        if shift > 63:
            raise IndexError("a number without an end")
