"""Prompts to embeddings: CLIP text encoders, prompts of any length, clip skip."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.devices import send

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told about a batch of prompts."""

    embeds: Tensor
    """``[batch, tokens, …]``."""
    pooled: Tensor | None = None
    """``[batch, width]``, where the family has one."""
    mask: Tensor | None = None
    """``[batch, tokens]``, true where a token counts, where the family's encoder says so."""
    lengths: tuple[int, ...] | None = None
    """Tokens of each prompt, where prompts of a batch differ and the rest is padding. On the
    host: asking a GPU for them would make it wait."""

    def to(self, *, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """The same conditioning on a device and in a precision."""
        pooled = None if self.pooled is None else send(self.pooled, device).to(dtype)
        mask = None if self.mask is None else send(self.mask, device)
        return Conditioning(send(self.embeds, device).to(dtype), pooled, mask, self.lengths)

    def as_dict(self) -> dict[str, Tensor]:
        """Plain tensors of one prompt, for the cache."""
        named = {"embeds": self.embeds, "pooled": self.pooled, "mask": self.mask}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def counted(self) -> Tensor:
        """True where a token counts and is no padding, ``[batch, tokens]``."""
        count, tokens = self.embeds.shape[:2]
        lengths = torch.tensor(self.lengths or [tokens] * count)
        return send(torch.arange(tokens) < lengths[:, None], self.embeds.device)

    @classmethod
    def joined(cls, items: Sequence[Conditioning]) -> Conditioning:
        """One batch of several, the shorter ones lengthened with zeros that do not count."""
        lengths = tuple(item.embeds.shape[1] for item in items for _ in range(len(item.embeds)))
        longest = max(lengths)
        pooled = [item.pooled for item in items if item.pooled is not None]
        masks = [longer(item.mask, longest) for item in items if item.mask is not None]
        return cls(
            torch.cat([longer(item.embeds, longest) for item in items]),
            torch.cat(pooled) if pooled else None,
            torch.cat(masks) if masks else None,
            lengths if min(lengths) < longest else None,
        )

    def padded(self, tokens: int, empty: Conditioning) -> Conditioning:
        """Lengthened to ``tokens`` with chunks of the empty prompt, as the hosts do.

        ``empty`` is the conditioning of ``""`` for one prompt, one chunk long.
        """
        missing = (tokens - self.embeds.shape[1]) // empty.embeds.shape[1]
        if missing <= 0:
            return self
        filler = empty.embeds.to(self.embeds).expand(self.embeds.shape[0], -1, -1)
        return Conditioning(torch.cat([self.embeds, *[filler] * missing], dim=1), self.pooled)


def longer(values: Tensor, tokens: int) -> Tensor:
    """``[batch, tokens, …]`` lengthened with zeros."""
    missing = tokens - values.shape[1]
    if not missing:
        return values
    return torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], dim=1)


def tokenise(
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_chunks: int,
    expansions: Mapping[int, Sequence[int]] | None = None,
) -> Tensor:
    """Token ids ``[batch, chunks, 77]``: begin, 75 tokens, end, padded as the tokenizer pads.

    ``expansions`` says which ids stand for several others (learned tokens).

    Every prompt gets as many chunks as the longest needs, at most ``max_chunks``.
    """
    room = tokenizer.model_max_length - 2
    ids = [
        tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        for prompt in prompts
    ]
    kept = ids
    if expansions:
        ids = [[e for i in row for e in expansions.get(i, (i,))] for row in ids]
    needed = max(1, *(-(-len(tokens) // room) for tokens in ids))
    if needed > max_chunks:
        cut = tokenizer.decode(max(kept, key=len)[max_chunks * room :])
        log.warning("a prompt is longer than %d tokens; cut: %s", max_chunks * room, cut)
    chunks = min(needed, max_chunks)
    begin, end, padding = (getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad"))
    rows = []
    for tokens in ids:
        parts = [tokens[i * room : (i + 1) * room] for i in range(chunks)]
        rows.append([[begin, *part, end, *[padding] * (room - len(part))] for part in parts])
    return torch.tensor(rows, dtype=torch.long)


def encode_chunks(
    encoder: nn.Module, ids: Tensor, *, skip: int, normalise: bool
) -> tuple[Tensor, Tensor]:
    """Hidden states and pooled output of a CLIP text encoder.

    Args:
        encoder: ``CLIPTextModel`` or ``CLIPTextModelWithProjection``.
        ids: ``[batch, chunks, 77]``.
        skip: layers to leave out at the end; 0 takes the last one.
        normalise: apply the final layer norm to the layer taken (SD1, SD2; not SDXL).

    Returns:
        ``[batch, chunks * 77, width]`` and the pooled output of the first chunk,
        ``[batch, width]``: projected where the encoder has a projection.
    """
    batch, chunks, length = ids.shape
    ids = send(ids, next(encoder.parameters()).device)
    output = encoder(ids.reshape(batch * chunks, length), output_hidden_states=True)
    if skip == 0 and normalise:
        hidden = output.last_hidden_state
    else:
        hidden = output.hidden_states[-1 - skip]
        if normalise:
            # Transformers 5 moved it out of ``text_model``.
            body: Any = getattr(encoder, "text_model", encoder)
            hidden = body.final_layer_norm(hidden)
    pooled = getattr(output, "text_embeds", None)
    if pooled is None:
        pooled = output.pooler_output
    pooled = pooled.reshape(batch, chunks, -1)[:, 0]
    return hidden.reshape(batch, chunks * length, -1), pooled
