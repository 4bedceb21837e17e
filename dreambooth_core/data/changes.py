"""Small changes of an image, so that few images do for more: turned, and in another light.

What is drawn here are numbers; ``images.py`` does to pixels what they say. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dreambooth_core.randomness import uniform

Light = tuple[float, float, float]
"""Factors of brightness, contrast and saturation."""


class Change(NamedTuple):
    """One change of an image."""

    angle: float = 0.0
    """Degrees, counter-clockwise; enlarged as far as it takes to leave no empty corners."""
    light: Light = (1.0, 1.0, 1.0)

    @property
    def key(self) -> str:
        """Text that tells changes apart, for caches."""
        return f"r{self.angle}l{self.light}"


@dataclass(frozen=True)
class Changes:
    """The changes of a run's images.

    Each image has ``variants`` changes of its own, drawn once from the seed, and is shown as one of
    them or as it is: that many can be encoded beforehand. With 0 each showing is another.
    """

    rotation: float = 0.0
    """Degrees to either side, at most."""
    color_jitter: float = 0.0
    """How far brightness, contrast and saturation may be from 1."""
    variants: int = 0

    def one_of(self, seed: int, image: int, *showing: int) -> Change | None:
        """That of a showing of an image; ``None``: it is as it is."""
        if not self.variants:
            return self._drawn(seed, image, *showing)
        which = int(uniform("variant", seed, image, *showing) * (self.variants + 1))
        return self._drawn(seed, image, which) if which else None

    def all_of(self, seed: int, image: int) -> list[Change | None]:
        """Every one that :meth:`one_of` can give for an image."""
        return [None, *(self._drawn(seed, image, 1 + which) for which in range(self.variants))]

    def _drawn(self, *key: int) -> Change:
        def around(name: str, most: float) -> float:
            return most * (2 * uniform(name, *key) - 1)

        factor = [
            round(1 + around(name, self.color_jitter), 4)
            for name in ("brightness", "contrast", "saturation")
        ]
        return Change(round(around("angle", self.rotation), 3), (factor[0], factor[1], factor[2]))
