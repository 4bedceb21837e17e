"""Prompts to embeddings by CLIP: prompts of any length, clip skip."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreambooth_core.devices import send

log = logging.getLogger(__name__)


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
