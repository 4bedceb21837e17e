"""From what a model says of an image to a caption to train with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_OPENING = re.compile(
    r"^(the image (shows|depicts|features|is)|this (image|picture|photo) (shows|depicts|is)|"
    r"there (is|are)|in (this|the) (image|picture),?)\s+",
    re.IGNORECASE,
)
"""How models begin that are asked to describe: words that belong to no image."""


@dataclass(frozen=True)
class Wording:
    """What is done with a model's words."""

    trigger: str = ""
    """What the subject is called, such as ``a photo of sks dog``: it comes first, and its words are
    never taken out."""
    prefix: str = ""
    suffix: str = ""
    never: Sequence[str] = ()
    """Words or phrases that are taken out: what should be learned as part of the subject must not
    be said, or it is learned as something that can be left out."""

    def caption(self, said: str) -> str:
        """The caption, on one line."""
        text = _OPENING.sub("", " ".join(said.split())).strip(" .,;")
        for word in self.never:
            text = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "", text, flags=re.IGNORECASE)
        pieces = [" ".join(piece.split()) for piece in re.split(r"[,;]", text)]
        text = ", ".join(piece.strip(" .") for piece in pieces if piece.strip(" ."))
        parts = [self.prefix.strip(" ,"), self.trigger.strip(" ,"), text, self.suffix.strip(" ,")]
        return ", ".join(part for part in parts if part)
