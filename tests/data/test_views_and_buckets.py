"""The geometry: views cover their size, buckets bound the memory and cut as little as can be."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.buckets import bucket_sizes, choose, cut_share, enlargement, sizes_for
from dreambooth_core.data.changes import Change
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.plan import View, crop_top_left, place, scaled
from dreambooth_core.errors import UserError

SIDES = st.integers(1, 5000)
TARGETS = st.tuples(st.integers(1, 64), st.integers(1, 64)).map(lambda s: (s[0] * 8, s[1] * 8))
PLACES = st.tuples(st.floats(0, 1), st.floats(0, 1))


@settings(deadline=None)
@given(original=st.tuples(SIDES, SIDES), target=TARGETS)
def test_a_scaled_picture_covers_its_target_and_touches_it(original, target):
    height, width = scaled(original, target)
    assert height >= target[0]
    assert width >= target[1]
    assert height == target[0] or width == target[1]
    # The shape is kept to half a pixel of the side that is rounded.
    exact = max(target[0] / original[0], target[1] / original[1])
    assert abs(height - original[0] * exact) <= 0.5 + 1e-6
    assert abs(width - original[1] * exact) <= 0.5 + 1e-6
    # Scaling what is scaled changes nothing: views of it are views of the original.
    assert scaled((height, width), target) == (height, width)


@settings(deadline=None)
@given(original=st.tuples(SIDES, SIDES), target=TARGETS, at=PLACES)
def test_a_view_lies_inside(original, target, at):
    view = place(original, target, at)
    height, width = scaled(original, target)
    assert 0 <= view.top <= height - target[0]
    assert 0 <= view.left <= width - target[1]
    assert view.size == target


def test_places():
    assert place((100, 200), (50, 50)).crop == (0, 25)
    assert place((100, 200), (50, 50), (0, 0)).crop == (0, 0)
    assert place((100, 200), (50, 50), (1, 1)).crop == (0, 50)
    assert place((200, 100), (50, 50), (1, 1)).crop == (50, 0)


def test_views_have_keys_of_their_own():
    views = [
        View(64, 64),
        View(64, 64, flip=True),
        View(64, 64, top=1),
        View(64, 64, left=1),
        View(64, 128),
        View(128, 64),
        View(64, 64, change=Change(2.5)),
        View(64, 64, change=Change(light=(1.0, 1.1, 1.0))),
        View(6, 464),
    ]
    assert len({view.key for view in views}) == len(views)


def test_the_crop_of_a_mirrored_picture_is_told_as_the_net_sees_it():
    view = place((100, 200), (50, 50), (0, 0.25))
    assert crop_top_left((100, 200), view) == (0, 12)
    assert crop_top_left((100, 200), View(50, 50, 0, 12, flip=True)) == (0, 100 - 50 - 12)


def test_sdxl_buckets_are_the_known_ones():
    sizes = set(bucket_sizes(1024 * 1024, 64, 2048))
    for size in [(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (1344, 768), (1536, 640)]:
        fits = any(s[0] >= size[0] and s[1] >= size[1] for s in sizes)
        assert fits, size
    assert (832, 1216) in sizes


@settings(deadline=None)
@given(
    resolution=st.integers(1, 32).map(lambda n: n * 64),
    step=st.sampled_from([8, 16, 32, 64]),
    stretch=st.floats(1, 4),
)
def test_buckets_never_need_more_memory_than_the_square(resolution, step, stretch):
    sizes = bucket_sizes(resolution**2, step, round(resolution * stretch))
    assert (resolution, resolution) in sizes
    for height, width in sizes:
        assert height % step == width % step == 0
        assert height * width <= resolution**2
        assert max(height, width) <= max(round(resolution * stretch), step)
        assert (width, height) in sizes


@settings(deadline=None)
@given(original=st.tuples(SIDES, SIDES))
def test_the_chosen_bucket_cuts_least(original):
    sizes = bucket_sizes(512 * 512, 64, 1024)
    chosen = choose(original, sizes)

    def cut(size):
        ratio = (size[1] / size[0]) / (original[1] / original[0])
        return 1 - min(ratio, 1 / ratio)

    assert cut(chosen) <= min(cut(size) for size in sizes) + 1e-9


def test_among_equal_shapes_the_larger_is_chosen():
    assert choose((50, 50), [(64, 64), (128, 128), (96, 96)]) == (128, 128)


def test_common_photos():
    sizes = sizes_for(DataOptions(resolution=512))
    assert choose((780, 780), sizes) == (512, 512)
    assert choose((3000, 4000), sizes) == (448, 576)
    assert choose((4000, 3000), sizes) == (576, 448)
    assert choose((2160, 3840), sizes) == (384, 640)
    assert choose((100, 9000), sizes) == (256, 1024)


@pytest.mark.parametrize("resolution", [64, 128, 192, 256])
def test_small_resolutions_suit_eight_downsamplings_of_the_latents(resolution):
    for height, width in sizes_for(DataOptions(resolution=resolution)):
        assert (height // 8) % 8 == (width // 8) % 8 == 0


def test_cuts_have_one_size():
    for crop in ("center", "random"):
        options = DataOptions(resolution=512, crop=crop)
        assert sizes_for(options) == [(512, 512)]
        options = DataOptions(resolution=512, height=384, width=640, crop=crop)
        assert sizes_for(options) == [(384, 640)]


def test_height_and_width_bound_the_buckets():
    sizes = sizes_for(DataOptions(height=256, width=512))
    assert (256, 512) in sizes
    assert max(h * w for h, w in sizes) == 256 * 512


@pytest.mark.parametrize(
    ("options", "where"),
    [
        (DataOptions(resolution=500), "data.resolution"),
        (DataOptions(height=100), "data.height"),
        (DataOptions(width=100), "data.width"),
        (DataOptions(bucket_reso_steps=20), "data.bucket_reso_steps"),
        (DataOptions(resolution=64, bucket_reso_steps=128), "data.bucket_reso_steps"),
    ],
)
def test_sizes_that_cannot_be(options, where):
    with pytest.raises(UserError) as caught:
        sizes_for(options)
    assert caught.value.where == where
    assert caught.value.do


def test_shares():
    assert cut_share((100, 100), (64, 64)) == 0
    assert math.isclose(cut_share((100, 200), (64, 64)), 0.5)
    assert enlargement((100, 200), (64, 64)) == 0.64
