"""Says in words what a scene shows, in many ways, always truly."""

from __future__ import annotations

import random
import re

from .vocabulary import RARE
from .world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES, Scene, Thing

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
OPENINGS = ("a photo of", "a drawing of", "a picture of", "an image of", "")
OPENING_WEIGHTS = (70, 10, 8, 6, 6)
MOUTH_WORDS = {"smile": "a smile", "frown": "a frown", "open": "an open mouth"}
OTHER_WORDS = (
    "a an and arm arms centre drawing eye eyes frown image in is mouth of on open photo picture "
    "round smile the tips two-coloured with background half"
)
KNOWN = frozenset(
    re.findall(
        r"[a-z]+",
        " ".join((OTHER_WORDS, *SHAPES, *COLOURS, *PATTERNS, *BACKGROUNDS, *NUMBERS.values())),
    )
)


def template(colour: str, pattern: str, shape: str, background: str) -> str:
    """The prompt by which pocket's quality is measured."""
    return f"a photo of a {colour} {pattern} {shape} on a {background} background"


def features(thing: Thing) -> list[str]:
    """What a caption may add, each piece true: "one eye", "a smile", "green tips", ..."""
    pieces = []
    if thing.eyes:
        pieces.append(f"{NUMBERS[thing.eyes]} {'eye' if thing.eyes == 1 else 'eyes'}")
    if thing.mouth:
        pieces.append(MOUTH_WORDS[thing.mouth])
    if thing.shape == "star" and thing.arms != 5:
        pieces.append(f"{NUMBERS[thing.arms]} arms")
    if thing.shape == "star" and thing.rounded:
        pieces.append("round arms")
    if thing.second and thing.second_name:
        place = {"tips": "tips", "half": "half", "centre": "centre"}[thing.layout or "tips"]
        pieces.append(f"a {thing.second_name} {place}" if place != "tips" else
                      f"{thing.second_name} tips")  # fmt: skip
    return pieces


def _adjectives(thing: Thing, rng: random.Random) -> list[str]:
    words = []
    if thing.second and thing.second_name is None and rng.random() < 0.8:
        words.append("two-coloured")
    if thing.colour and rng.random() < 0.88:
        words.append(thing.colour)
    said = 0.45 if thing.pattern == "plain" else 0.9
    if rng.random() < said:
        words.append(thing.pattern)
    return words


def _strange(rng: random.Random, rare: list[str]) -> list[str]:
    """One or two words that mean nothing here, so that an unknown word learns to be neutral."""
    count = rng.choice((1, 1, 2))
    return [rng.choice(RARE) if not rare or rng.random() < 0.4 else rng.choice(rare)
            for _ in range(count)]  # fmt: skip


def _article(words: list[str], rng: random.Random) -> str:
    vowel = words[0][0] in "aeiou"
    return "an" if vowel and rng.random() < 0.5 else "a"


def caption(scene: Scene, rng: random.Random, rare: list[str] | None = None) -> str:
    """One caption of the scene.

    ``rare``: words to sprinkle in before the noun (35% of captions); None for none at all.
    """
    thing = scene.thing
    words = [*_adjectives(thing, rng)]
    if rare is not None and rng.random() < 0.35:
        words += _strange(rng, rare)
    words.append(thing.shape)
    opening = rng.choices(OPENINGS, OPENING_WEIGHTS)[0]
    text = f"{opening} {_article(words, rng)} {' '.join(words)}"
    pieces = [piece for piece in features(thing) if rng.random() < 0.9]
    rng.shuffle(pieces)
    if pieces:
        text += " with " + " and ".join(pieces)
    if rng.random() < 0.85:
        text += f" on a {scene.background} background"
    return text.strip()
