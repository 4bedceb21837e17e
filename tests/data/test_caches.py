"""What is cached is what would be made anew, or it is not used."""

from __future__ import annotations

import logging
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.cache import (
    DiskStore,
    LatentCache,
    MemoryStore,
    NoStore,
    TextCache,
    pack,
    unpack,
)
from dreambooth_core.data.images import pixels
from dreambooth_core.data.plan import View, place
from dreambooth_core.data.stocktaking import look_at
from dreambooth_core.errors import SaveFailed, Stopped, TrainingFailed
from dreambooth_core.formats.fingerprint import fingerprint


class Encoder:
    """A small autoencoder's encoder that counts its calls."""

    def __init__(self, seed: int = 0) -> None:
        self.net = torch.nn.Conv2d(3, 8, 8, stride=8)
        torch.nn.init.normal_(self.net.weight, generator=torch.Generator().manual_seed(seed))
        torch.nn.init.zeros_(self.net.bias)
        self.batches: list[int] = []

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(len(images))
        mean, std = self.net(images).chunk(2, dim=1)
        return mean.detach(), std.detach().abs() + 0.1

    def cache(self, store, **more) -> LatentCache:
        return LatentCache(self, fingerprint(self.net), store, pixels=pixels, **more)


@pytest.fixture
def pictures(photos):
    return [look_at(path) for path in sorted(photos.iterdir())]


def _wanted(pictures, size=(64, 64)):
    return [(p, place((p.height, p.width), size)) for p in pictures]


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path):
    return MemoryStore() if request.param == "memory" else DiskStore(tmp_path / "cache")


def test_the_cached_distribution_is_the_encoders(store, pictures):
    encoder = Encoder()
    cache = encoder.cache(store)
    assert cache.fill(_wanted(pictures)) == 5
    assert encoder.batches == [1] * 5
    for picture, view in _wanted(pictures):
        mean, std = encoder(pixels(picture, view)[None])
        found = cache.distribution(picture, view)
        assert torch.equal(found.mean, mean[0])
        assert torch.equal(found.std, std[0])
        assert found.mean.dtype == torch.float32
    encoder.batches.clear()
    assert cache.fill(_wanted(pictures)) == 0
    cache.distribution(*_wanted(pictures)[0])
    assert encoder.batches == []


def test_samples_are_those_of_the_distribution(pictures):
    cache = Encoder().cache(MemoryStore())
    found = cache.distribution(*_wanted(pictures)[0])
    noise = torch.randn(found.mean.shape, generator=torch.Generator().manual_seed(5))
    got = found.sample(torch.Generator().manual_seed(5))
    assert torch.equal(got, found.mean + found.std * noise)


def test_views_pictures_recipes_and_encoders_are_kept_apart(store, pictures):
    encoder = Encoder()
    cache = encoder.cache(store)
    first, second = pictures[:2]
    views = [View(64, 64), View(64, 64, flip=True), View(64, 64, left=5), View(64, 32)]
    cache.fill([(second, view) for view in views] + [(first, views[0])])
    assert sum(encoder.batches) == 5
    plain, mirrored = (cache.distribution(second, view).mean for view in views[:2])
    assert not torch.equal(plain, mirrored)
    assert not torch.equal(plain.flip(-1), mirrored)
    other = Encoder(seed=1)
    fresh = other.cache(store).distribution(first, views[0])
    assert torch.equal(fresh.mean, other(pixels(first, views[0])[None])[0][0])
    assert encoder.cache(store, recipe="black").fill([(first, views[0])]) == 1


def test_a_copy_of_a_picture_is_not_encoded_twice(tmp_path, store, draw, encode):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(encode(draw(64, 64)))
    cache = Encoder().cache(store)
    pair = [look_at(tmp_path / name) for name in ("a.png", "b.png")]
    assert cache.fill(_wanted(pair)) == 1


def test_a_picture_that_was_edited_is_encoded_anew(tmp_path, draw, encode):
    path = tmp_path / "a.png"
    store = DiskStore(tmp_path / "cache")
    made = []
    for seed in (0, 1):
        path.write_bytes(encode(draw(64, 64, seed)))
        made.append(Encoder().cache(store).distribution(look_at(path), View(64, 64)).mean)
    assert not torch.equal(*made)


def test_batches_have_one_size_and_report_progress(pictures):
    encoder = Encoder()
    cache = encoder.cache(MemoryStore(), batch_size=2)
    wanted = _wanted(pictures[:3]) + _wanted(pictures[3:], (64, 32))
    seen: list[tuple[int, int]] = []
    cache.fill(wanted, progress=lambda done, total: seen.append((done, total)))
    assert encoder.batches == [2, 1, 2]
    assert seen == [(2, 5), (3, 5), (5, 5)]


def test_stopping_keeps_what_was_encoded(store, pictures):
    encoder = Encoder()
    cache = encoder.cache(store)
    with pytest.raises(Stopped):
        cache.fill(_wanted(pictures), stop=lambda: len(encoder.batches) == 2)
    assert cache.fill(_wanted(pictures)) == 3


def test_a_disk_cache_outlives_the_run_and_needs_no_encoder(tmp_path, pictures):
    made = Encoder().cache(DiskStore(tmp_path / "c"))
    made.fill(_wanted(pictures))
    again = Encoder().cache(DiskStore(tmp_path / "c"))
    again.encode = None  # the encoder has left
    for picture, view in _wanted(pictures):
        assert torch.equal(
            again.distribution(picture, view).std, made.distribution(picture, view).std
        )
    with pytest.raises(TypeError, match="not callable"):
        again.distribution(pictures[0], View(64, 64, flip=True))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "garbage"])
def test_a_damaged_file_is_made_anew_with_a_warning(tmp_path, pictures, caplog, damage):
    store = DiskStore(tmp_path / "c")
    encoder = Encoder()
    cache = encoder.cache(store)
    one, two = _wanted(pictures)[:2]
    good = cache.distribution(*one)
    cache.distribution(*two)
    path, other = (store._path(cache.key(which)) for which in (one, two))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 1
    path.write_bytes(
        {
            "cut": bytes(content[:-10]),
            "flip": bytes(content),
            "empty": b"",
            "other": other.read_bytes(),
            "garbage": os.urandom(300),
        }[damage]
    )
    encoder.batches.clear()
    with caplog.at_level(logging.WARNING):
        assert torch.equal(cache.distribution(*one).mean, good.mean)
    assert encoder.batches == [1]
    assert "made anew" in caplog.text
    caplog.clear()
    assert torch.equal(cache.distribution(*one).mean, good.mean)
    assert not caplog.text


def test_a_full_disk_does_not_end_the_run(tmp_path, pictures, monkeypatch, caplog):
    def full(path, content):
        raise SaveFailed("could not save: the disk is full", where=path)

    monkeypatch.setattr("dreambooth_core.data.cache.write_bytes", full)
    encoder = Encoder()
    cache = encoder.cache(DiskStore(tmp_path / "c"))
    with caplog.at_level(logging.WARNING):
        cache.fill(_wanted(pictures))
    assert caplog.text.count("disk is full") == 1
    assert cache.fill(_wanted(pictures)) == 0
    assert len(encoder.batches) == 5


def test_without_a_cache_every_time_is_the_first(pictures):
    encoder = Encoder()
    cache = encoder.cache(NoStore())
    for _ in range(3):
        cache.distribution(*_wanted(pictures)[0])
    assert encoder.batches == [1, 1, 1]


def test_latents_that_are_not_numbers_end_the_run(pictures):
    cache = LatentCache(
        lambda images: (images * float("nan"), images),
        "f",
        MemoryStore(),
        pixels=pixels,
    )
    with pytest.raises(TrainingFailed, match="NaN") as caught:
        cache.distribution(*_wanted(pictures)[0])
    assert caught.value.where == str(pictures[0].path)
    assert cache.store.get(cache.key(_wanted(pictures)[0])) is None


def test_rows_of_a_batch_do_not_keep_the_batch(pictures):
    cache = Encoder().cache(MemoryStore(), batch_size=5)
    cache.fill(_wanted(pictures))
    mean = cache.distribution(*_wanted(pictures)[0]).mean
    assert mean.untyped_storage().nbytes() == mean.numel() * 4


def test_memory_is_bounded_by_what_was_used_last():
    store = MemoryStore(limit=1000)
    for name in "abc":
        store.put(name, torch.zeros(100))
        store.get("a")
    assert [store.get(name) is not None for name in "abc"] == [True, False, True]
    assert store.size == 800
    store.put("a", torch.zeros(10))
    assert store.size == 440


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.tuples(
        st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
        st.lists(st.integers(0, 3), max_size=3),
    ).map(lambda a: torch.ones(a[1], dtype=a[0])),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=8,
)


def _same(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(_same(a, b) for a, b in pairs)
    return type(one) is type(other) and one == other


@settings(deadline=None)
@given(tree=TREES)
def test_trees_come_back_from_bytes(tree):
    assert _same(tree, unpack(pack(tree, "k"), "k"))


@settings(deadline=None, max_examples=200)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_one_wrong_bit_is_never_taken(where, bit):
    content = bytearray(pack({"a": torch.arange(6.0), "b": [1, None]}, "k"))
    content[int(where * len(content))] ^= 1 << bit
    with pytest.raises(ValueError):
        unpack(bytes(content), "k")


def test_shared_and_transposed_tensors_can_be_kept():
    base = torch.arange(6.0).reshape(2, 3)
    tree = unpack(pack([base, base.T, base[0]], "k"), "k")
    assert _same(tree, [base, base.T, base[0]])
    with pytest.raises(TypeError, match="set cannot be cached"):
        pack({"a": {1, 2}}, "k")


def test_fingerprints_differ_where_weights_differ():
    def net(seed: int = 0) -> torch.nn.Linear:
        torch.manual_seed(seed)
        return torch.nn.Linear(100, 300)

    first = fingerprint(net())
    assert first == fingerprint(net()) == fingerprint(net().state_dict())
    different = {first, fingerprint(net(1)), fingerprint(net().half()), fingerprint(net(), net())}
    different.add(fingerprint(net(), also=["clip skip 2"]))
    for position in (0, 17, 29_999):
        changed = net()
        with torch.no_grad():
            changed.weight.view(-1)[position] *= 1.0001
        different.add(fingerprint(changed))
    swapped = net()
    with torch.no_grad():
        swapped.weight[[0, 1]] = swapped.weight[[1, 0]]
    different.add(fingerprint(swapped))
    assert len(different) == 9


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.bool])
def test_fingerprints_of_any_dtype(dtype):
    weights = {"a": torch.ones(3, 3).to(dtype), "empty": torch.zeros(0), "scalar": torch.tensor(1)}
    assert len(fingerprint(weights)) == 32
    with pytest.raises(ValueError, match="meta"):
        fingerprint({"a": torch.zeros(1, device="meta")})


class Texts:
    """Text encoders that count their calls."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def __call__(self, captions):
        self.batches.append(list(captions))
        return [{"embeds": torch.full((2, 3), float(len(c))), "pooled": None} for c in captions]


def test_captions_are_encoded_once(store):
    encoder = Texts()
    cache = TextCache(encoder, "f", store)
    seen: list[tuple[int, int]] = []
    made = cache.fill(["a", "bb", "a", ""], progress=lambda *now: seen.append(now))
    assert made == 3
    assert encoder.batches == [["a"], ["bb"], [""]]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert cache.value("bb")["embeds"].tolist() == [[2.0] * 3] * 2
    assert cache.value("new")["pooled"] is None
    assert len(encoder.batches) == 4
    other = TextCache(encoder, "g", store)
    other.value("a")
    assert len(encoder.batches) == 5
    cache.encode = None
    assert torch.equal(cache.value("a")["embeds"], torch.ones(2, 3))
    with pytest.raises(TypeError, match="not callable"):
        cache.value("never seen")


def test_stopping_while_captions_are_encoded():
    cache = TextCache(Texts(), "f", MemoryStore(), batch_size=2)
    with pytest.raises(Stopped):
        cache.fill("abcdef", stop=lambda: len(cache.encode.batches) == 1)
    assert cache.fill("abcdef") == 4
    assert cache.encode.batches[1:] == [["c", "d"], ["e", "f"]]


def test_a_store_takes_over_what_is_asked_for():
    first = MemoryStore()
    for name in "abc":
        first.put(name, torch.ones(4))
    second = MemoryStore(before=first)
    assert second.get("d") is None
    assert torch.equal(second.get("a"), torch.ones(4))
    assert second.size == 16 and first.get("a") is None
    second.forget_others()
    assert second.get("a") is not None and second.get("b") is None
