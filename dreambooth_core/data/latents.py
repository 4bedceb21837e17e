"""Encoded images: the latent *distribution* of each view, made once and kept.

An autoencoder gives a mean and a deviation; each training step draws a latent of its own from
them, so keeping the distribution changes nothing of the training but its speed.

Crops and mirrored images are entries of their own: a convolution's answer to a mirrored image
is not the mirrored answer. Random crops take a bounded number of positions
(``DataOptions.crop_positions``) so that they can be kept; with 0 positions each is encoded when it
is needed and nothing of it is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from dreambooth_core.data.inventory import Picture
from dreambooth_core.data.store import Store
from dreambooth_core.data.views import Size, View
from dreambooth_core.errors import Stopped, TrainingFailed

RECIPE = 1
"""Raised when images are decoded, scaled or cut in another way than before."""

Wanted = tuple[Picture, View]
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]
"""float32 [N, 3, H, W] in [-1, 1] → mean and deviation, each [N, C, H/f, W/f]."""


class Distribution(NamedTuple):
    """Mean and standard deviation of an image's latents, float32 [C, H/f, W/f], on the CPU."""

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator) -> Tensor:
        """A latent: mean + deviation × normal noise from ``generator``."""
        noise = torch.randn(self.mean.shape, generator=generator)
        return self.mean + self.std * noise


class LatentCache:
    """Distributions by what they depend on: the image's bytes, the view, the autoencoder.

    Args:
        encode: The autoencoder's encoder, before any scaling of latents. May be replaced or set
            to ``None`` once everything is kept and the autoencoder has left.
        fingerprint: Of the autoencoder's weights (``fingerprint.fingerprint``).
        store: Where they are kept.
        pixels: Loads a view, float32 [3, H, W] (``Items.pixels``).
        recipe: Whatever else the pixels depend on, such as the background of transparent ones.
        batch_size: Images encoded at once. 1 makes each independent of its company to the bit.
    """

    def __init__(
        self,
        encode: Encode | None,
        fingerprint: str,
        store: Store,
        *,
        pixels: Callable[[Picture, View], Tensor],
        recipe: str = "",
        batch_size: int = 1,
    ) -> None:
        self.encode = encode
        self.fingerprint = fingerprint
        self.store = store
        self.pixels = pixels
        self.recipe = recipe
        self.batch_size = batch_size

    def key(self, picture: Picture, view: View) -> str:
        """Changes with anything that the latents depend on."""
        parts = (RECIPE, self.fingerprint, self.recipe, picture.content_hash, view.key)
        text = "\0".join(str(part) for part in ("latents", *parts))
        return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()

    def distribution(self, picture: Picture, view: View) -> Distribution:
        """The view's distribution, encoded now if it is not there. Do not change it in place."""
        found = self._stored(picture, view)
        return found if found is not None else self._encode([(picture, view)])[0]

    def fill(
        self,
        wanted: Iterable[Wanted],
        *,
        progress: Callable[[int, int], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> int:
        """Encode whatever of ``wanted`` is missing; returns how many that were.

        ``progress`` is called with (done, missing).

        Raises:
            Stopped: ``stop`` said so; what was encoded stays.
        """
        missing = list(
            {self.key(*one): one for one in wanted if self._stored(*one) is None}.values()
        )
        by_size: dict[Size, list[Wanted]] = {}
        for one in missing:
            by_size.setdefault(one[1].size, []).append(one)
        done = 0
        for members in by_size.values():
            for start in range(0, len(members), self.batch_size):
                if stop is not None and stop():
                    raise Stopped("stopped while images were being encoded")
                done += len(self._encode(members[start : start + self.batch_size]))
                if progress is not None:
                    progress(done, len(missing))
        return len(missing)

    def _stored(self, picture: Picture, view: View) -> Distribution | None:
        found = self.store.get(self.key(picture, view))
        return None if found is None else Distribution(*found)

    @torch.no_grad()
    def _encode(self, batch: list[Wanted]) -> list[Distribution]:
        if self.encode is None:
            raise RuntimeError("a view is not in the cache, and the autoencoder has left")
        images = torch.stack([self.pixels(picture, view) for picture, view in batch])
        means, stds = self.encode(images)
        made = []
        for (picture, view), mean, std in zip(batch, means, stds, strict=True):
            if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
                raise TrainingFailed(
                    "the autoencoder made NaN of this image",
                    where=picture.path,
                    do="Run the autoencoder in fp32 or bf16.",
                )
            # Copies: rows of a batch would keep the whole batch in memory.
            one = Distribution(_kept(mean), _kept(std))
            self.store.put(self.key(picture, view), tuple(one))
            made.append(one)
        return made


def _kept(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
