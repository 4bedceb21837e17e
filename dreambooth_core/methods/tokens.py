"""Textual inversion (Gal et al. 2022, arXiv:2208.01618), and pivotal tuning: a token and a LoRA.

Only the token's own rows are trained; the table that they stand beside is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dreambooth_core.errors import UserError
from dreambooth_core.families.components import Components
from dreambooth_core.families.tokens import LearnedEmbedding, add_token, embeddings_of, token_ids
from dreambooth_core.formats.embeddings import KEYS
from dreambooth_core.methods.adapters import Lora
from dreambooth_core.methods.base import Method, Trainable
from dreambooth_core.methods.options import MethodOptions
from dreambooth_core.randomness import generator


class _Token(Method):
    """A word is learned, whatever else is trained."""

    _tables: list[LearnedEmbedding]

    @property
    def trains_text(self) -> bool:
        return True

    def learn(self, seed: int) -> list[Trainable]:
        """Adds the word; one group for each text encoder's rows."""
        self._tables = learn_token(self.options, self.parts, seed)
        names = ["token", *(f"token_{i}" for i in range(2, len(self._tables) + 1))]
        pairs = zip(names, self._tables, strict=True)
        return [Trainable(name, {"rows": table.rows}) for name, table in pairs]

    def embedding(self) -> dict[str, Tensor]:
        names = KEYS[len(self._tables)]
        return {
            name: table.rows.detach().to("cpu", torch.float32, copy=True)
            for name, table in zip(names, self._tables, strict=True)
        }

    def caption_for_proof(self, captions: Sequence[str]) -> str:
        parts, word = self.parts, self.options.placeholder_token
        for caption in captions:
            if any(i in parts.expansions for i in token_ids(parts.tokenizers[0], caption)):
                return caption
        raise UserError(
            f"no caption has the token {word!r} in it, so it cannot be learned",
            where="method.placeholder_token",
            do=f"Write it into the instance prompt: a photo of {word} …",
        )


class TextualInversion(_Token):
    """Learns a word; the model stays as it is."""

    @property
    def trained_models(self) -> dict[str, nn.Module]:
        return self.parts.text_models

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        self.freeze()
        self._trainables = self.learn(seed)
        return self._trainables


class PivotalTuning(_Token, Lora):
    """A learned word and a LoRA that are trained together."""

    @property
    def adapted_models(self) -> dict[str, nn.Module]:
        return super().trained_models

    @property
    def trained_models(self) -> dict[str, nn.Module]:
        return self.adapted_models | self.parts.text_models

    def attach(self, seed: int, dtype: torch.dtype = torch.float32) -> list[Trainable]:
        # The adapter first: peft freezes whatever is not its own.
        self._trainables = [*super().attach(seed, dtype), *self.learn(seed)]
        return self._trainables


def learn_token(options: MethodOptions, parts: Components, seed: int) -> list[LearnedEmbedding]:
    """Adds the token, its rows started from the starting word, and ready to be trained."""
    # Models without data, of which only the size counts, come without tokenizers.
    tokenizers = parts.tokenizers or [None] * len(parts.text_encoders)
    rows = [
        starting_rows(options, tokenizer, encoder, seed)
        for tokenizer, encoder in zip(tokenizers, parts.text_encoders, strict=True)
    ]
    tables = add_token(parts, options.placeholder_token, rows)
    for table in tables:
        table.rows.requires_grad_(True)
    return tables


def starting_rows(
    options: MethodOptions, tokenizer: object, encoder: nn.Module, seed: int
) -> Tensor:
    """``[vectors, width]``: the starting word's own rows in turn, or random ones like others.

    Raises:
        UserError: the starting word has no tokens.
    """
    weight = embeddings_of(encoder).token_embedding.weight.detach()
    word = options.initializer_token if tokenizer is not None else ""
    ids = token_ids(tokenizer, word) if word else []
    if word and not ids:
        raise UserError("the starting word has no tokens", where="method.initializer_token")
    if weight.is_meta:
        return weight.new_empty(options.num_vectors, weight.shape[1])
    table = weight.float().cpu()
    if not ids:
        noise = torch.randn(
            options.num_vectors, table.shape[1], generator=generator("token", seed, table.shape[1])
        )
        return noise * table.std(dim=0) + table.mean(dim=0)
    return table[[ids[i % len(ids)] for i in range(options.num_vectors)]]
