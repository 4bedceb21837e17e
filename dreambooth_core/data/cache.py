"""Encoded images and captions, made once and kept: in memory, on disk, or nowhere.

Of an image the latent *distribution* of each view is kept: an autoencoder gives a mean and a
deviation, and each training step draws a latent of its own from them, so keeping it changes nothing
of the training but its speed. Crops and mirrored images are entries of their own: a convolution's
answer to a mirrored image is not the mirrored answer. Random crops take a bounded number of
positions (``DataOptions.crop_positions``) so that they can be kept; with 0 positions each is
encoded when it is needed and nothing of it is kept.

A kept value is a tree of dicts, lists and tuples with tensors, numbers, texts and ``None`` as
leaves.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dreambooth_core.data.inventory import ImageFile
from dreambooth_core.data.plan import Size, View
from dreambooth_core.disk import write_bytes
from dreambooth_core.errors import SaveFailed, Stopped, TrainingFailed

log = logging.getLogger(__name__)

RECIPE = 1
"""Raised when images are decoded, scaled or cut in another way than before."""

Wanted = tuple[ImageFile, View]
Item = TypeVar("Item")


class Distribution(NamedTuple):
    """Mean and standard deviation of an image's latents, float32 [C, H/f, W/f], on the CPU."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A latent: mean + deviation × normal noise from ``generator``."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise


@dataclass
class Cache(ABC, Generic[Item]):
    """What an encoder makes of things, by what that depends on."""

    encode: Any
    """The encoder: takes items, and gives the value of each."""
    fingerprint: str
    """Of its weights (``fingerprint.fingerprint``) and whatever else counts."""
    store: Store
    """Where values are kept. Where tags are shuffled there is no end of captions: give
    ``MemoryStore`` a limit."""
    _: KW_ONLY
    batch_size: int = 1
    """Things encoded at once. 1 makes each independent of its company to the bit."""
    things: ClassVar[str]

    @abstractmethod
    def key(self, item: Item) -> str:
        """Changes with anything that the value depends on."""

    def _encoded(self, items: list[Item]) -> Sequence[Any]:
        """The value of each item; all go together into a batch."""
        return list(self.encode(items))

    def _alike(self, items: list[Item]) -> list[list[Item]]:
        """The items in parts that can be batches."""
        return [items]

    def value(self, item: Item) -> Any:
        """The item's value, encoded now if it is not there. Do not change it in place."""
        found = self.store.get(self.key(item))
        return found if found is not None else self._make([item])[0]

    def fill(
        self,
        wanted: Iterable[Item],
        *,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Encode whatever of ``wanted`` is missing; returns how many that were.

        ``progress`` is called with (done, missing).

        Raises:
            Stopped: ``stop`` said so; what was encoded stays.
        """
        unique = {self.key(one): one for one in wanted}
        missing = [one for key, one in unique.items() if self.store.get(key) is None]
        done = 0
        for members in self._alike(missing):
            for start in range(0, len(members), self.batch_size):
                if stop is not None and stop():
                    raise Stopped(f"stopped while {self.things} were being encoded")
                done += len(self._make(members[start : start + self.batch_size]))
                if progress is not None:
                    progress(done, len(missing))
        return len(missing)

    @torch.no_grad()
    def _make(self, items: list[Item]) -> Sequence[Any]:
        made = self._encoded(items)
        for item, value in zip(items, made, strict=True):
            self.store.put(self.key(item), value)
        return made


def hashed(text: str) -> str:
    """A key of a store from whatever a value depends on."""
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=20).hexdigest()


@dataclass
class LatentCache(Cache[Wanted]):
    """Distributions of views of images.

    ``encode`` is the autoencoder's encoder, before any scaling of latents: float32 [N, 3, H, W] in
    [-1, 1] → mean and deviation, each [N, C, H/f, W/f].
    """

    _: KW_ONLY
    pixels: Callable[[ImageFile, View], Tensor]
    """Loads a view, float32 [3, H, W] (``Items.pixels``)."""
    recipe: str = ""
    """Whatever else the pixels depend on, such as the background of transparent ones."""
    things = "images"

    def key(self, item: Wanted) -> str:
        image, view = item
        parts = [RECIPE, self.fingerprint, self.recipe, image.content_hash, view.key]
        if image.crop is not None:
            parts.append(image.crop)
        return hashed("\0".join(str(part) for part in ("latents", *parts)))

    def distribution(self, image: ImageFile, view: View) -> Distribution:
        """The view's distribution, encoded now if it is not there. Do not change it in place."""
        return Distribution(*self.value((image, view)))

    def _alike(self, items: list[Wanted]) -> list[list[Wanted]]:
        by_size: dict[Size, list[Wanted]] = {}
        for one in items:
            by_size.setdefault(one[1].size, []).append(one)
        return list(by_size.values())

    def _encoded(self, items: list[Wanted]) -> list[tuple[Tensor, Tensor]]:
        images = torch.stack([self.pixels(image, view) for image, view in items])
        means, stds = self.encode(images)
        for (image, _), mean, std in zip(items, means, stds, strict=True):
            if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
                raise TrainingFailed(
                    "the autoencoder made NaN of this image",
                    where=image.path,
                    do="Run the autoencoder in fp32 or bf16.",
                )
        # Copies: rows of a batch would keep the whole batch in memory.
        return [(_kept(mean), _kept(std)) for mean, std in zip(means, stds, strict=True)]


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


class TextCache(Cache[str]):
    """What the text encoders make of a caption.

    ``encode`` takes captions and gives for each a tree (dicts, lists, tuples) of tensors on the
    CPU.
    """

    things = "captions"

    def key(self, item: str) -> str:
        return hashed(f"texts\0{self.fingerprint}\0{item}")


class NoStore:
    """Keeps nothing: everything is encoded anew. Of any store, what it lost or cannot read is
    simply not there, and what it gives is shared: do not change it in place."""

    def get(self, key: str) -> Any | None:
        """Always ``None``."""
        return None

    def put(self, key: str, value: Any) -> None:
        """Does nothing."""


class MemoryStore:
    """Keeps values in memory; beyond ``limit`` bytes, those used longest ago are dropped.

    Args:
        limit: bytes.
        before: a store that had its time. What is asked for and lies there moves here.
    """

    def __init__(self, limit: int | None = None, before: MemoryStore | None = None) -> None:
        self.limit = limit
        self.size = 0
        self._values: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._before = before

    def get(self, key: str) -> Any | None:
        """The very object that was put."""
        if key not in self._values and self._before and key in self._before._values:
            self.put(key, self._before._values.pop(key)[0])
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: str, value: Any) -> None:
        """Keep a value and, if the limit asks for it, drop others."""
        if key in self._values:
            self.size -= self._values.pop(key)[1]
        size = sum(leaf.nbytes if isinstance(leaf, Tensor) else 64 for leaf in tree_leaves(value))
        self._values[key] = (value, size)
        self.size += size
        while self.limit is not None and self.size > self.limit and len(self._values) > 1:
            self.size -= self._values.popitem(last=False)[1][1]

    def forget_others(self) -> None:
        """Drops what lies in the store before and was not asked for."""
        self._before = None


class DiskStore:
    """Keeps each value in a file of its own, whole or not at all, with a checksum.

    A file that is damaged or of another version counts as missing, with a warning. A disk that is
    full ends nothing: from then on new values are kept in memory.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._fallback: MemoryStore | None = None

    def get(self, key: str) -> Any | None:
        """The value as it was put, on the CPU."""
        kept = self._fallback.get(key) if self._fallback is not None else None
        if kept is not None:
            return kept
        path = self._path(key)
        try:
            return unpack(path.read_bytes(), key)
        except FileNotFoundError:
            return None
        except OSError as error:
            why = f"cannot be read ({error.strerror})"
        except ValueError as error:
            why = f"is damaged ({error})"
        log.warning("cache file %s %s; made anew", path, why)
        return None

    def put(self, key: str, value: Any) -> None:
        """Write the value's file."""
        if self._fallback is None:
            try:
                write_bytes(self._path(key), pack(value, key))
                return
            except SaveFailed as error:
                log.warning("%s. Caching continues in memory.", error.line)
                self._fallback = MemoryStore()
        self._fallback.put(key, value)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.cache"


Store = MemoryStore | DiskStore | NoStore


def pack(value: Any, key: str) -> bytes:
    """A value as bytes: a line of JSON (version, key, checksum, shape of the tree), then tensors.

    Raises:
        TypeError: The tree holds something else than the kinds named above.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flatten(value, tensors)
    payload = save(tensors)
    digest = _checksum(tree, payload)
    head = {"version": 1, "key": key, "checksum": digest, "tree": tree}
    return json.dumps(head).encode() + b"\n" + payload


def unpack(content: bytes, key: str) -> Any:
    """The inverse of :func:`pack`.

    Raises:
        ValueError: The bytes are damaged, of another version, or of another key.
    """
    line, found, payload = content.partition(b"\n")
    try:
        head = json.loads(line)
        if not found or head["version"] != 1 or head["key"] != key:
            raise ValueError("another version or key")
        if head["checksum"] != _checksum(head["tree"], payload):
            raise ValueError("the checksum differs")
        return _unflatten(head["tree"], load(payload))
    except (KeyError, TypeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


def _checksum(tree: Any, payload: bytes) -> str:
    digest = hashlib.blake2b(payload, digest_size=16)
    digest.update(json.dumps(tree, sort_keys=True).encode())
    return digest.hexdigest()


def _flatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """JSON that describes the tree; its tensors go into ``tensors`` by number."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: safetensors refuses tensors that share memory or are not contiguous.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only texts can be keys of what is cached")
        return {"dict": {key: _flatten(item, tensors) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_flatten(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise TypeError(f"{type(value).__name__} cannot be cached on disk")


def _unflatten(tree: Any, tensors: dict[str, Tensor]) -> Any:
    ((kind, inside),) = tree.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "dict":
        return {key: _unflatten(item, tensors) for key, item in inside.items()}
    if kind == "value":
        return inside
    items = [_unflatten(item, tensors) for item in inside]
    return tuple(items) if kind == "tuple" else items
