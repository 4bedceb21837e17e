"""What a subject is drawn in to be judged: prompts in the scheme of DreamBooth's evaluation.

Ruiz et al. 2022, section 4.1: 25 prompts each. Things: 20 recontextualisations and 5 property
modifications. Living subjects: 10 recontextualisations, 10 accessorisations and 5 property
modifications. ``{}`` stands for the prompt of the subject, or for that of its class. A style is
judged by what it was not learned from: 25 contents, with ``{}`` for the style's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_core.disk.reading import read_bytes
from dreambooth_core.errors import UserError
from dreambooth_core.jobs.strict import parse_json

LARGEST, MOST, LONGEST = 1_000_000, 10_000, 10_000
"""Bytes of a list of prompts, how many there are, and characters of one."""

PLACES = (
    "{} at the edge of a frozen lake",
    "{} on a windowsill in the rain",
    "{} among fallen autumn leaves",
    "{} on a cobbled market square",
    "{} beside a mountain stream",
    "{} on a wooden jetty at dawn",
    "{} in a field of sunflowers",
    "{} under a street lamp at night",
    "{} on red desert sand",
    "{} in front of a lighthouse",
)
MORE_PLACES = (
    "{} on a kitchen table next to fresh bread",
    "{} on a mossy rock",
    "{} on top of a stack of old books",
    "{} in a snow-covered garden",
    "{} on a picnic blanket",
    "{} beside a burning candle",
    "{} on a marble pedestal in a museum",
    "{} half buried in beach pebbles",
    "{} on the roof of a tall building",
    "{} seen from directly above on a patterned carpet",
)
WORN = (
    "{} wearing a knitted scarf",
    "{} wearing a straw hat",
    "{} wearing round glasses",
    "{} in a yellow raincoat",
    "{} wearing a crown of flowers",
    "{} dressed as an astronaut",
    "{} dressed as a pirate",
    "{} wearing a blue bow tie",
    "{} in a chef's apron",
    "{} wearing headphones",
)
CHANGED = (
    "{}, coloured bright red",
    "{}, coloured deep purple",
    "{} made of clear glass",
    "{} carved out of wood",
    "{} in the shape of a cube",
)
CONTENTS = (
    "a cat asleep on a chair, {}",
    "a sailing boat in a storm, {}",
    "a bowl of oranges, {}",
    "an old man with a pipe, {}",
    "a mountain village in winter, {}",
    "a steam locomotive, {}",
    "a girl reading under a tree, {}",
    "a castle on a cliff, {}",
    "a bicycle against a wall, {}",
    "two horses in a meadow, {}",
    "a busy street after rain, {}",
    "a vase of tulips, {}",
    "a robot watering plants, {}",
    "a lighthouse at night, {}",
    "a plate of spaghetti, {}",
    "a fox in the snow, {}",
    "a woman playing the violin, {}",
    "a hot-air balloon, {}",
    "a cottage by a lake, {}",
    "an owl on a branch, {}",
    "a desk with books and a lamp, {}",
    "a dragon above a valley, {}",
    "a crowded market, {}",
    "a whale under water, {}",
    "a bridge in fog, {}",
)
PROTOCOLS: dict[str, tuple[str, ...]] = {
    "thing": (*PLACES, *MORE_PLACES, *CHANGED),
    "living": (*PLACES, *WORN, *CHANGED),
    "style": CONTENTS,
}
FILE = "prompts.json"
"""Beside the encoders that come with a base: the prompts that such a base can draw."""


@dataclass(frozen=True)
class Task:
    """One image to make."""

    prompt: str
    """What is asked for, with the subject's own words."""
    described: str
    """The same in words that everybody knows: what an image is compared with."""
    seed: int
    of_class: bool = False
    """Whether it shows the class, for preservation and diversity."""


def prompts_for(kind: str, beside: Path | None = None) -> tuple[str, ...]:
    """The prompts of a protocol, or those that a base brings for itself.

    Args:
        kind: a name of :data:`PROTOCOLS`.
        beside: the folder of the base's own encoders.

    Raises:
        UserError: the base's own list is none.
    """
    own = beside / FILE if beside is not None else None
    if own is None or not own.is_file():
        return PROTOCOLS[kind]
    return read_prompts(own)


def read_prompts(file: Path) -> tuple[str, ...]:
    """A JSON list of prompts with ``{}`` where the subject stands.

    Raises:
        UserError: it is none.
    """
    try:
        data = read_bytes(file, LARGEST)
        found = parse_json(data, largest=LARGEST, most=MOST, longest=LONGEST)
    except UserError as error:
        raise UserError(f"the prompts cannot be read: {error.what}", where=file) from error
    good = isinstance(found, list) and all(isinstance(p, str) and "{}" in p for p in found)
    if not good or not found:
        raise UserError(
            "this is not a list of prompts", where=file, do='Each is a text with "{}" in it.'
        )
    return tuple(found)


def tasks(
    prompts: tuple[str, ...], instance: str, of_class: str, images: int, seed: int
) -> list[Task]:
    """Every image of an evaluation: ``images`` of each prompt, and as many of the class as of all
    prompts together, at least 8 and at most 50. Seeds depend on place alone."""
    plain = of_class or instance
    found = [
        Task(prompt.replace("{}", instance), prompt.replace("{}", plain), seed + 1000 * i + n)
        for i, prompt in enumerate(prompts)
        for n in range(images)
    ]
    if of_class:
        count = min(max(len(found), 8), 50)
        found += [Task(of_class, of_class, seed + 900_000 + n, True) for n in range(count)]
    return found
