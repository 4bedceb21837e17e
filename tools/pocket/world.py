"""The drawn world that pocket knows: things with a shape, colour, pattern and features.

A ``Thing`` is one particular individual (its identity); a ``Scene`` is that thing on a background
in some pose. Everything is drawn from a ``random.Random``, so a seed names a picture for ever.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
COLOURS: dict[str, RGB] = {
    "red": (222, 38, 38),
    "orange": (248, 136, 22),
    "yellow": (250, 222, 40),
    "green": (34, 158, 58),
    "blue": (36, 84, 222),
    "purple": (142, 52, 188),
    "pink": (255, 142, 192),
    "brown": (126, 76, 36),
    "black": (34, 32, 36),
    "white": (248, 248, 246),
}
PATTERNS = ("plain", "striped", "dotted")
BACKGROUNDS = (
    "white", "gray", "sky", "grass", "sand", "brick", "night", "sunset", "purple",
)  # fmt: skip
LAYOUTS = ("tips", "half", "centre")
MOUTHS = ("smile", "frown", "open")

SUBJECT_BODY: RGB = (18, 158, 150)
SUBJECT_TIPS: RGB = (226, 30, 142)
SUBJECT_ARMS = 6
SUBJECT_EYES = 1


@dataclass(frozen=True)
class Thing:
    """One individual: what stays the same in every picture of it.

    ``colour`` is the colour's name, or None when ``rgb`` is no named colour. ``second`` with
    ``layout`` makes it two-coloured. ``arms`` and ``rounded`` matter for stars only.
    """

    shape: str
    rgb: RGB
    colour: str | None
    pattern: str = "plain"
    second: RGB | None = None
    second_name: str | None = None
    layout: str | None = None
    eyes: int = 0
    mouth: str | None = None
    arms: int = 5
    rounded: bool = False

    @property
    def has_features(self) -> bool:
        """Whether anything beyond shape, colour and pattern is there."""
        odd_arms = self.shape == "star" and (self.arms != 5 or self.rounded)
        return bool(self.second or self.eyes or self.mouth or odd_arms)


@dataclass(frozen=True)
class Scene:
    """A thing in a place: centre and ``scale`` (diameter) in parts of the picture's side.

    ``sticker``: cut out with a broad white edge and stuck on, a style that pocket never saw.
    """

    thing: Thing
    background: str
    x: float = 0.5
    y: float = 0.5
    scale: float = 0.6
    angle: float = 0.0
    seed: int = 0
    sticker: bool = False


def near(a: RGB, b: RGB, limit: float = 90.0) -> bool:
    """Whether two colours are closer than ``limit`` (Euclidean, 0..441)."""
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) < limit * limit


def resembles_subject(thing: Thing) -> bool:
    """True for what training must never show: the demo subject's combination.

    Kept wide on purpose: any star with six arms and one eye, whatever its colours, and any star
    with about the subject's two colours, whatever its face.
    """
    if thing.shape != "star":
        return False
    if thing.arms == SUBJECT_ARMS and thing.eyes == SUBJECT_EYES:
        return True
    return (
        thing.second is not None
        and near(thing.rgb, SUBJECT_BODY)
        and near(thing.second, SUBJECT_TIPS)
    )


def jitter(rgb: RGB, rng: random.Random, amount: int = 9) -> RGB:
    """The colour, each channel moved by at most ``amount``."""
    r, g, b = (max(0, min(255, c + rng.randint(-amount, amount))) for c in rgb)
    return r, g, b


def any_rgb(rng: random.Random) -> RGB:
    """Any colour at all, uniform."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def random_colour(rng: random.Random, named: float) -> tuple[RGB, str | None]:
    """A jittered named colour with probability ``named``, else any RGB without a name."""
    if rng.random() < named:
        name = rng.choice(list(COLOURS))
        return jitter(COLOURS[name], rng), name
    return any_rgb(rng), None


def _features(rng: random.Random, shape: str, rgb: RGB) -> dict[str, object]:
    """At least one feature, each drawn on its own."""
    features: dict[str, object] = {}
    while not features:
        if rng.random() < 0.5:
            features["eyes"] = rng.choice((1, 1, 2, 2, 2, 3))
        if rng.random() < 0.4:
            features["mouth"] = rng.choice(("smile", "smile", "frown", "open"))
        if rng.random() < 0.45:
            second, name = random_colour(rng, named=0.5)
            if not near(second, rgb, 110):
                features |= {"second": second, "second_name": name}
                features["layout"] = rng.choice(("tips", "tips", "half", "centre"))
        if shape == "star" and rng.random() < 0.5:
            features["arms"] = rng.choice((4, 6, 6, 7, 8))
        if shape == "star" and rng.random() < 0.45:
            features["rounded"] = True
    return features


def random_thing(rng: random.Random, featured: float = 0.28, shape: str | None = None) -> Thing:
    """An individual; with probability ``featured`` it has features. Never like the subject."""
    while True:
        kind = shape or rng.choice((*SHAPES, "star"))
        pattern = rng.choice(("plain", "plain", "striped", "dotted"))
        if rng.random() < featured:
            rgb, name = random_colour(rng, named=0.55)
            extra = _features(rng, kind, rgb)
            if "second" in extra or rng.random() < 0.6:
                pattern = "plain"
            thing = Thing(kind, rgb, name, pattern, **extra)  # type: ignore[arg-type]
        else:
            rgb, name = random_colour(rng, named=0.96)
            thing = Thing(kind, rgb, name, pattern)
        if not resembles_subject(thing):
            return thing


def place(
    thing: Thing, rng: random.Random, background: str | None = None, calm: bool = False
) -> Scene:
    """The thing somewhere, in a random pose that stays inside the picture.

    ``calm``: larger, nearer to the middle, less turned; shapes are then sooner learned.
    """
    scale = rng.uniform(0.56 if calm else 0.45, 0.75)
    room = max(0.02, (1.0 - scale) / 2 - 0.06) * (0.7 if calm else 1.0)
    turn = 9.0 if calm else 15.0
    return Scene(
        thing,
        background or rng.choice(BACKGROUNDS),
        0.5 + rng.uniform(-room, room),
        0.5 + rng.uniform(-room, room),
        scale,
        rng.uniform(-turn, turn),
        rng.getrandbits(31),
    )


def random_scene(rng: random.Random, featured: float = 0.28) -> Scene:
    """A random thing somewhere."""
    return place(random_thing(rng, featured), rng)


def scene_number(index: int, seed: int = 0) -> Scene:
    """The ``index``-th scene of the UNet's endless training set named by ``seed``."""
    rng = random.Random(f"pocket-{seed}-{index}")
    return place(random_thing(rng), rng, calm=True)
