"""How long a step takes on a GPU at least: what it computes, and what crosses the bus meanwhile.

Rules of thumb that say so: they tell whether streaming is bearable, not how fast a card is.
"""

from __future__ import annotations

from dataclasses import dataclass

COMPUTED = 25e12
"""Floating-point operations a second that training in half precision gets out of a card of the
middle class (an RTX 3060 or 4060, half of its limit). Larger ones are several times faster."""
COPIED = 12e9
"""Bytes a second over PCIe 3.0 x16 or 4.0 x8 from memory that the GPU can reach by itself."""


@dataclass(frozen=True)
class Pace:
    """One optimizer step."""

    operations: float
    """Floating-point operations."""
    copied: int
    """Bytes that cross the bus."""

    @property
    def seconds(self) -> float:
        """At the speeds above. Blocks are copied while others compute, so the longer counts."""
        return max(self.operations / COMPUTED, self.copied / COPIED)


def pace(
    forward: float,
    *,
    streamed: int,
    states: int,
    trained: bool,
    checkpointing: bool,
    passes: int,
) -> Pace:
    """The pace of a step.

    Args:
        forward: operations of one forward pass.
        streamed: bytes of weights that lie in RAM.
        states: bytes of their optimizer's states.
        trained: whether the model's own weights are trained. A backward pass then computes as much
            for them as for what it passes on, and they go back with their states.
        checkpointing: whether the forward pass is computed again for the backward pass.
        passes: forward passes in a step, one after another.
    """
    times = (3 if trained else 2) + checkpointing
    crossed = 3 * streamed + 2 * states if trained else 2 * streamed
    return Pace(forward * times * passes, crossed * passes)
