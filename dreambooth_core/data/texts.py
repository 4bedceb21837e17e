"""Encoded captions, made once and kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from dreambooth_core.data.store import Store
from dreambooth_core.errors import Stopped

Encode = Callable[[Sequence[str]], Sequence[Any]]
"""Captions → for each a tree (dicts, lists, tuples) of tensors on the CPU."""


class TextCache:
    """What the text encoders make of a caption, by caption and encoders.

    Args:
        encode: The text encoders. May be set to ``None`` once every caption is kept.
        fingerprint: Of the text encoders' weights and whatever else counts, such as the clip skip.
        store: Where embeddings are kept. Where tags are shuffled there is no end of captions:
            give ``MemoryStore`` a limit.
        batch_size: Captions encoded at once. 1 makes each independent of its company to the bit.
    """

    def __init__(
        self, encode: Encode | None, fingerprint: str, store: Store, *, batch_size: int = 1
    ) -> None:
        self.encode = encode
        self.fingerprint = fingerprint
        self.store = store
        self.batch_size = batch_size

    def key(self, caption: str) -> str:
        """Changes with anything that the embedding depends on."""
        text = f"texts\0{self.fingerprint}\0{caption}"
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=20).hexdigest()

    def embedding(self, caption: str) -> Any:
        """The caption's embedding, encoded now if it is not there. Do not change it in place."""
        found = self.store.get(self.key(caption))
        return found if found is not None else self._encode([caption])[0]

    def fill(
        self,
        captions: Iterable[str],
        *,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Encode the captions that are missing; returns how many that were.

        Raises:
            Stopped: ``stop`` said so; what was encoded stays.
        """
        unique = dict.fromkeys(captions)
        missing = [text for text in unique if self.store.get(self.key(text)) is None]
        for start in range(0, len(missing), self.batch_size):
            if stop is not None and stop():
                raise Stopped("stopped while captions were being encoded")
            done = start + len(self._encode(missing[start : start + self.batch_size]))
            if progress is not None:
                progress(done, len(missing))
        return len(missing)

    @torch.no_grad()
    def _encode(self, captions: list[str]) -> list[Any]:
        if self.encode is None:
            raise RuntimeError("a caption is not in the cache, and the text encoders have left")
        made = list(self.encode(captions))
        if len(made) != len(captions):
            raise ValueError(f"{len(captions)} captions gave {len(made)} embeddings")
        for caption, value in zip(captions, made, strict=True):
            self.store.put(self.key(caption), value)
        return made
