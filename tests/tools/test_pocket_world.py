"""The drawn world: seeds name pictures, captions are true, the demo's subject stays unseen."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from tools.pocket import world
from tools.pocket.captions import caption, features, template
from tools.pocket.painting import paint, pattern_colour
from tools.pocket.subject import SCENES, SUBJECT


def _share_near(pixels: np.ndarray, rgb: world.RGB, limit: float = 40.0) -> float:
    distance = np.linalg.norm(pixels.astype(float) - np.array(rgb), axis=-1)
    return float((distance < limit).mean())


def test_a_number_names_one_picture() -> None:
    scene = world.scene_number(41)
    assert scene == world.scene_number(41) != world.scene_number(42)
    first, second = (np.asarray(paint(world.scene_number(41))) for _ in range(2))
    assert first.shape == (128, 128, 3)
    assert np.array_equal(first, second)


def test_another_seed_is_another_world() -> None:
    assert world.scene_number(7, seed=0) != world.scene_number(7, seed=1)


@pytest.mark.parametrize("number", range(60))
def test_caption_is_true(number: int) -> None:
    scene = world.scene_number(number)
    thing = scene.thing
    text = caption(scene, random.Random(number), ["xylophone"])
    words = text.split()
    named = [c for c in world.COLOURS if c in words[: words.index(thing.shape)]]
    assert named in ([], [thing.colour])
    assert [s for s in world.SHAPES if s in words] == [thing.shape]
    assert [p for p in world.PATTERNS if p in words] in ([], [thing.pattern])
    if "background" in words:
        assert words[words.index("background") - 1] == scene.background
    for piece in features(thing):
        assert piece.split()[0] in (*world.COLOURS, "a", "an", "round", *_numbers())


def _numbers() -> tuple[str, ...]:
    return ("one", "two", "three", "four", "six", "seven", "eight")


@pytest.mark.parametrize("name", list(world.COLOURS))
@pytest.mark.parametrize("pattern", world.PATTERNS)
def test_the_named_colour_is_in_the_picture(name: str, pattern: str) -> None:
    thing = world.Thing("circle", world.COLOURS[name], name, pattern)
    background = "night" if name in ("white", "yellow") else "white"
    pixels = np.asarray(paint(world.Scene(thing, background)))
    assert _share_near(pixels, world.COLOURS[name]) > 0.08
    if pattern != "plain":
        assert _share_near(pixels, pattern_colour(thing.rgb)) > 0.03


def test_second_colour_and_tips_are_drawn() -> None:
    pixels = np.asarray(paint(SCENES[0]))
    assert _share_near(pixels, world.SUBJECT_BODY) > 0.10
    assert _share_near(pixels, world.SUBJECT_TIPS) > 0.04


def test_the_subject_is_never_drawn_for_training() -> None:
    assert world.resembles_subject(SUBJECT)
    rng = random.Random(5)
    things = [world.random_thing(rng, featured=1.0, shape="star") for _ in range(3000)]
    assert not any(world.resembles_subject(thing) for thing in things)
    assert any(thing.arms == 6 for thing in things)
    assert any(thing.eyes == 1 for thing in things)


def test_resemblance_ignores_the_face_when_both_colours_are_there() -> None:
    assert world.resembles_subject(replace(SUBJECT, eyes=2, mouth=None, arms=5))
    assert not world.resembles_subject(replace(SUBJECT, eyes=2, second=(250, 220, 40)))


def test_vision_families_leave_the_subject_out() -> None:
    vision = pytest.importorskip("tools.pocket.vision")
    rng = random.Random(9)
    for _ in range(150):
        things = vision.family(rng)
        assert len({thing.shape for thing in things}) == 1
        assert not any(world.resembles_subject(thing) for thing in things)


def test_the_five_pictures_differ_in_background_only() -> None:
    assert {scene.thing for scene in SCENES} == {SUBJECT}
    assert len({scene.background for scene in SCENES}) == len(SCENES) == 5


def test_things_stay_inside_the_picture() -> None:
    rng = random.Random(3)
    for _ in range(300):
        scene = world.place(world.random_thing(rng), rng)
        assert scene.scale / 2 - 0.06 <= min(scene.x, scene.y)
        assert max(scene.x, scene.y) <= 1 - scene.scale / 2 + 0.06


def test_template() -> None:
    assert template("red", "striped", "moon", "sky") == (
        "a photo of a red striped moon on a sky background"
    )


@pytest.mark.parametrize("number", range(40))
def test_the_reader_is_asked_only_what_the_caption_says(number: int) -> None:
    reader = pytest.importorskip("tools.pocket.reader")
    scene = world.scene_number(number)
    text = caption(scene, random.Random(number), ["zkz"])
    answers = dict(zip(reader.FACTS, reader.said(text, scene), strict=True))
    for fact, names in reader.FACTS.items():
        assert names[answers[fact]] in text
    assert names_said(text, reader.FACTS["pattern"]) == bool(answers["pattern"])


def names_said(text: str, names: tuple[str, ...]) -> bool:
    return any(name in text.split() for name in names if name)
