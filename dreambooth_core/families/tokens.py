"""Learned tokens: rows of their own beside a text encoder's frozen embedding table.

A word becomes a token of the tokenizer, which :attr:`Components.expansions` maps to negative ids,
one for each vector. Negative, because CLIP finds the end of a text as the largest id in it: ids
beyond the vocabulary would be taken for the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components


class LearnedEmbedding(nn.Module):
    """An embedding table whose negative ids are rows of its own, fp32 ``[vectors, width]``."""

    def __init__(self, base: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.rows = nn.Parameter(rows.detach().float().clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The frozen table."""
        table: Tensor = self.base.weight  # type: ignore[assignment]
        return table

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings ``[..., width]`` of ids ``[...]``; -1 is the first row."""
        learned = (ids < 0).unsqueeze(-1)
        known: Tensor = self.base(ids.clamp(min=0))
        own = self.rows[(-1 - ids).clamp(min=0)].to(known.dtype)
        return torch.where(learned, own, known)


def add_token(parts: Components, word: str, rows: Sequence[Tensor]) -> list[LearnedEmbedding]:
    """Teaches all tokenizers and text encoders a word.

    Args:
        rows: for each text encoder its vectors ``[vectors, width]``.

    Returns:
        The text encoders' embeddings; with a second word the same ones have more rows.

    Raises:
        UserError: the word is empty or has spaces, is known already, or has not the width of
            this base.
    """
    if not word or word != word.strip() or any(c.isspace() for c in word):
        raise UserError(
            f"a token is one word, and {word!r} is not", where="method.placeholder_token"
        )
    if len(rows) != len(parts.text_encoders):
        raise UserError(
            f"it was made for {len(rows)} text encoder(s), the base has {len(parts.text_encoders)}",
            do="Use an embedding of the base's family.",
        )
    identity = _new_id(parts.tokenizers, word) if parts.tokenizers else -1
    embeddings = []
    start = 0
    for encoder, values in zip(parts.text_encoders, rows, strict=True):
        holder = embeddings_of(encoder)
        table = holder.token_embedding
        width = int(table.weight.shape[1])
        if values.ndim != 2 or values.shape[1] != width:
            raise UserError(
                f"its vectors are {values.shape[-1]} wide, the base's are {width}",
                do="Use an embedding of the base's family.",
            )
        values = values.to(table.weight.device)
        if isinstance(table, LearnedEmbedding):
            start = int(table.rows.shape[0])
            table.rows = nn.Parameter(
                torch.cat([table.rows.detach(), values.float()]), requires_grad=False
            )
        else:
            holder.token_embedding = LearnedEmbedding(table, values)
        embeddings.append(holder.token_embedding)
    count = int(rows[0].shape[0])
    parts.expansions[identity] = [-1 - (start + i) for i in range(count)]
    return embeddings


def embeddings_of(encoder: nn.Module) -> Any:
    """A CLIP text encoder's module of token and position embeddings."""
    return getattr(encoder, "text_model", encoder).embeddings


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """A text's tokens without begin and end."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _new_id(tokenizers: Sequence[Any], word: str) -> int:
    """The word's id, one for all tokenizers: they share CLIP's vocabulary."""
    from transformers import AddedToken

    # Stands alone ("sks" is not in "asks"), and is found whatever its case, as CLIP reads.
    token = AddedToken(word.lower(), single_word=True, normalized=True, lstrip=False, rstrip=False)
    found = set()
    for tokenizer in tokenizers:
        # A piece of the vocabulary would become the learned token inside other words too.
        if word.lower() in tokenizer.get_vocab() or not tokenizer.add_tokens([token]):
            raise UserError(
                f"{word!r} is in the vocabulary as a whole word",
                where="method.placeholder_token",
                do=f"Take a word that is not, such as {word}-1 or <{word}>.",
            )
        found.add(int(tokenizer.convert_tokens_to_ids(word.lower())))
    if len(found) != 1:
        raise UserError(
            "the base's tokenizers have different vocabularies", where="method.placeholder_token"
        )
    return found.pop()
