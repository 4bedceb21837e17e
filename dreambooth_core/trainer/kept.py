"""What a worker that goes on keeps in RAM from one run for the next: the base as it was before
training, and what its encoders made of images and captions."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from dreambooth_core.bases.locate import locate
from dreambooth_core.data.cache import MemoryStore
from dreambooth_core.families.components import Components
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.memory.wanted import has_room

log = logging.getLogger(__name__)

LOCKED = os.name == "nt"
"""Whether a file that is mapped into memory, as weights may be, can be neither replaced nor
deleted."""


@dataclass(frozen=True)
class Origin:
    """What a run's base was read from, and what became of it."""

    options: BaseOptions
    stamps: tuple[tuple[str, int, int], ...]
    """Paths, sizes and times of change of its files."""
    dtype: torch.dtype
    """What the frozen weights were rounded to."""
    device: torch.device
    """Where the encoders made what is cached: not all compute the same bits."""

    def serves(self, wanted: Origin, *, unrounded: bool) -> bool:
        """Whether a base of this origin is, once it is rounded, what ``wanted`` would be.
        ``unrounded``: whether it is also needed as its files have it."""
        if (self.options, self.stamps) != (wanted.options, wanted.stamps):
            return False
        return self.dtype == torch.float32 or (self.dtype == wanted.dtype and not unrounded)


class Kept:
    """The base of the last run of this process, if it is still in memory.

    In a run: :meth:`take`, then :meth:`store` for each cache, and in the end :meth:`keep`.
    """

    def __init__(self) -> None:
        self._base: Components | None = None
        self._origin: Origin | None = None  # of that base; in a run, of the run's own
        self._stores: dict[str, MemoryStore] = {}
        self._before: dict[str, MemoryStore] = {}

    def take(
        self, options: BaseOptions, dtype: torch.dtype, device: torch.device, *, unrounded: bool
    ) -> Components | None:
        """The base that a run wants, if it is here; nothing is kept then any more, nor is another
        base, whose memory the run needs.

        Args:
            options: the ``base`` section.
            dtype: what the run rounds its base to.
            device: where the run computes.
            unrounded: whether anything in the run needs the base as its files have it.

        Raises:
            UserError: there is no such base.
        """
        base, origin = self._base, self._origin
        wanted = Origin(options, _stamps(options), dtype, device)
        same = base is not None and origin is not None and origin.device == device
        self._before = self._stores if same else {}
        self._base, self._origin, self._stores = None, wanted, {}
        if base is None or origin is None or not origin.serves(wanted, unrounded=unrounded):
            return None
        log.info("the base is still in memory from the run before")
        return base

    def store(self, things: str, limit: int | None) -> MemoryStore:
        """A cache in memory, which has what the last run's has under the same keys."""
        store = self._stores[things] = MemoryStore(limit, self._before.pop(things, None))
        return store

    def keep(self, base: Components | None, mark: str) -> None:
        """Keeps the run's base as :func:`~dreambooth_core.families.loading.load_base` gives one,
        but rounded; not if somebody else needs the memory.

        Args:
            base: with nothing of the training on it; None: there is none any more.
            mark: the fingerprint of its models before training. One that has another is not kept.
        """
        stores, self._stores = self._stores, {}
        if base is None or not mark or fingerprint(*base.models.values()) != mark:
            return
        tensors = chain.from_iterable(chain(n.parameters(), n.buffers()) for n in base.networks)
        if not has_room(sum(t.nbytes for t in tensors if t.device.type != "cpu")):
            log.info("the base is not kept for another run: little memory is free")
            return
        for network in base.networks:
            _reset(network)
        for store in stores.values():
            store.forget_others()
        self._base, self._stores = base, stores


def _reset(network: nn.Module) -> None:
    """A network as it was when it had just been read."""
    if getattr(network, "is_gradient_checkpointing", False):
        # diffusers and transformers name it differently.
        off = getattr(network, "disable_gradient_checkpointing", None) or getattr(
            network, "gradient_checkpointing_disable", None
        )
        if off is not None:
            off()
    network.to("cpu").eval().requires_grad_(False)
    for tensor in (*network.parameters(), *network.buffers()) if LOCKED else ():
        tensor.data = tensor.data.clone()


def _stamps(options: BaseOptions) -> tuple[tuple[str, int, int], ...]:
    first = locate(options.model, revision=options.revision, variant=options.variant)
    named: Sequence[str | None] = [options.vae, options.tokenizer, *options.text_encoders]
    found = []
    for place in [first, *(Path(os.path.expanduser(name)) for name in named if name)]:
        # Beside a file may lie one of its name that tells what it is.
        alike = place.parent.glob(f"{glob.escape(place.stem)}.*")
        for file in sorted(place.rglob("*") if place.is_dir() else alike):
            stat = file.stat()
            found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)
