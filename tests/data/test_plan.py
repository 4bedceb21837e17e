"""The plan: nothing lost, nothing doubled, and a step is the same however it is reached."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dreambooth_core.data.changes import Change
from dreambooth_core.data.options import DataOptions
from dreambooth_core.data.plan import CLASS, INSTANCE, BatchPlan, Entry, Slot, groups
from dreambooth_core.errors import UserError

SIZES = [(64, 64), (64, 128), (128, 64)]

entries = st.lists(
    st.builds(
        Entry,
        original=st.tuples(st.integers(20, 300), st.integers(20, 300)),
        size=st.sampled_from(SIZES),
        concept=st.integers(0, 2),
        repeats=st.integers(1, 3),
    ),
    min_size=1,
    max_size=9,
)
class_entries = st.lists(
    st.builds(
        Entry,
        original=st.just((64, 64)),
        size=st.sampled_from(SIZES),
        concept=st.integers(0, 2),
    ),
    max_size=9,
)
layouts = st.fixed_dictionaries(
    {
        "batch_size": st.integers(1, 5),
        "accumulation": st.integers(1, 4),
        "processes": st.integers(1, 3),
        "seed": st.integers(0, 5),
        "options": st.builds(
            DataOptions,
            flip=st.booleans(),
            crop=st.sampled_from(["bucket", "center", "random"]),
            crop_positions=st.sampled_from([0, 1, 3]),
            rotation=st.sampled_from([0.0, 9.0]),
            color_jitter=st.sampled_from([0.0, 0.1]),
            variants=st.sampled_from([0, 2]),
        ),
    }
)


def _epoch(plan: BatchPlan, epoch: int) -> list[list[list[Slot]]]:
    first = epoch * plan.steps_per_epoch
    return [plan.micro_batches(first + i) for i in range(plan.steps_per_epoch)]


@settings(deadline=None)
@given(instances=entries, classes=class_entries, layout=layouts, epoch=st.integers(0, 3))
def test_an_epoch_shows_every_picture_as_often_as_it_repeats(instances, classes, layout, epoch):
    plan = BatchPlan(instances, classes, **layout)
    slots = [slot for step in _epoch(plan, epoch) for batch in step for slot in batch]
    own = Counter((slot.image, slot.turn) for slot in slots if slot.kind == INSTANCE)
    assert own == Counter((i, r) for i, e in enumerate(instances) for r in range(e.repeats))
    assert sum(own.values()) == sum(entry.repeats for entry in instances)
    assert {slot.epoch for slot in slots} == {epoch}


@settings(deadline=None)
@given(instances=entries, classes=class_entries, layout=layouts)
def test_the_layout_of_batches(instances, classes, layout):
    plan = BatchPlan(instances, classes, **layout)
    full = layout["batch_size"] * layout["processes"]
    with_classes = {entry.concept for entry in classes}
    steps = _epoch(plan, 1)
    smaller: Counter[tuple[int, int]] = Counter()
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        assert len(step) == layout["accumulation"] or (last and len(step) >= 1)
        numbers = [slot.number for batch in step for slot in batch]
        assert len(set(numbers)) == len(numbers)
        for batch in step:
            own = [slot for slot in batch if slot.kind == INSTANCE]
            beside = [slot for slot in batch if slot.kind == CLASS]
            assert batch == own + beside
            assert 1 <= len(own) <= full
            assert len({slot.size for slot in own}) == 1
            smaller[own[0].size] += len(own) < full
            for slot in own:
                assert slot.size == instances[slot.image].size
                assert slot.concept == instances[slot.image].concept
            # Beside each instance slot is a class slot of its concept, if that has any.
            assert [(s.number - 1, s.concept) for s in beside] == [
                (s.number, s.concept) for s in own if s.concept in with_classes
            ]
            for slot in beside:
                assert classes[slot.image].concept == slot.concept
                assert slot.size == classes[slot.image].size
    assert all(count <= 1 for count in smaller.values())
    assert sum(len(step) for step in steps) == plan.micro_batches_per_epoch


@settings(deadline=None)
@given(
    instances=entries,
    classes=class_entries,
    layout=layouts,
    steps=st.lists(st.integers(0, 60), min_size=1, max_size=6),
)
def test_a_step_does_not_depend_on_those_before(instances, classes, layout, steps):
    plan = BatchPlan(instances, classes, **layout)
    for step in steps:
        assert plan.slots(step) == BatchPlan(instances, classes, **layout).slots(step)
        assert plan.slots(step) == [slot for b in plan.micro_batches(step) for slot in b]
        assert plan.epoch_of(step) == plan.slots(step)[0].epoch
        assert plan.ends_epoch(step) == (plan.epoch_of(step + 1) > plan.epoch_of(step))


@settings(deadline=None)
@given(instances=entries, classes=class_entries, layout=layouts, step=st.integers(0, 20))
def test_processes_share_a_batch_without_rest(instances, classes, layout, step):
    plan = BatchPlan(instances, classes, **layout)
    for batch in plan.micro_batches(step):
        parts = [plan.share(batch, rank) for rank in range(layout["processes"])]
        assert all(parts)
        real = [slot for part in parts for slot in part if slot.counts]
        assert sorted(real, key=lambda s: s.number) == sorted(batch, key=lambda s: s.number)
        for part in parts:
            own = {slot.number for slot in part if slot.kind == INSTANCE}
            assert len(own) <= layout["batch_size"]
            assert all(s.number - 1 in own for s in part if s.kind == CLASS)
            fillers = [slot for slot in part if not slot.counts]
            assert not fillers or len(part) == 1


@settings(deadline=None)
@given(instances=entries, classes=class_entries, layout=layouts, step=st.integers(0, 20))
def test_all_views_are_listed_beforehand(instances, classes, layout, step):
    plan = BatchPlan(instances, classes, **layout)
    if not plan.options.has_finite_views:
        with pytest.raises(ValueError, match="cannot be listed"):
            plan.views()
        return
    listed = plan.views()
    assert len(set(listed)) == len(listed)
    assert {(s.kind, s.image, s.view) for s in plan.slots(step)} <= set(listed)


@settings(deadline=None)
@given(instances=entries, classes=class_entries, layout=layouts)
def test_class_pictures_take_turns(instances, classes, layout):
    plan = BatchPlan(instances, classes, **layout)
    seen: dict[int, Counter[int]] = {}
    for epoch in range(3):
        for step in _epoch(plan, epoch):
            for slot in (s for batch in step for s in batch if s.kind == CLASS):
                seen.setdefault(slot.concept, Counter())[slot.image] += 1
    for concept, counts in seen.items():
        members = [i for i, e in enumerate(classes) if e.concept == concept]
        shown = [counts[i] for i in members]
        assert max(shown) - min(shown) <= 1


def test_each_image_has_changes_of_its_own_that_take_turns_with_itself():
    options = DataOptions(rotation=5.0, color_jitter=0.1, variants=3)
    plan = BatchPlan(_squares(2), _squares(2), batch_size=2, seed=3, options=options)
    seen: dict[tuple[str, int], Counter[str]] = {}
    for step in range(400):
        for slot in plan.slots(step):
            seen.setdefault((slot.kind, slot.image), Counter())[slot.view.key] += 1
            change = slot.view.change or Change()
            assert abs(change.angle) <= 5.0
            assert all(0.9 <= factor <= 1.1 for factor in change.light)
    own = [seen[INSTANCE, picture] for picture in range(2)]
    assert set(own[0]) & set(own[1]) == {"64x64+0+0"}
    for counts in own:
        assert len(counts) == 4 and min(counts.values()) > 60
    assert [set(seen[CLASS, picture]) for picture in range(2)] == [{"64x64+0+0"}] * 2
    without_end = BatchPlan(_squares(2), options=DataOptions(rotation=5.0, variants=0))
    changes_seen = {without_end.slots(step)[0].view.change for step in range(50)}
    assert len(changes_seen) == 50 and not without_end.options.has_finite_views
    assert {change.light for change in changes_seen if change} == {(1.0, 1.0, 1.0)}


def _squares(count: int, concept: int = 0, repeats: int = 1) -> list[Entry]:
    return [Entry((64, 64), (64, 64), concept, repeats) for _ in range(count)]


def _shown(plan: BatchPlan, step: int) -> list[tuple]:
    return [(s.number, s.kind, s.image, s.epoch, s.turn, s.view) for s in plan.slots(step)]


def test_a_step_is_the_same_however_it_is_laid_out():
    args = (_squares(12), _squares(5))
    one = BatchPlan(*args, batch_size=4, options=DataOptions(flip=True))
    for layout in (
        {"batch_size": 2, "accumulation": 2},
        {"batch_size": 1, "accumulation": 4},
        {"batch_size": 2, "processes": 2},
        {"batch_size": 1, "accumulation": 2, "processes": 2},
    ):
        other = BatchPlan(*args, options=DataOptions(flip=True), **layout)
        assert other.steps_per_epoch == one.steps_per_epoch
        for step in range(9):
            assert sorted(_shown(other, step)) == sorted(_shown(one, step))


def test_the_subjects_samples_are_the_same_without_prior_preservation():
    with_prior = BatchPlan(
        _squares(7), _squares(5), batch_size=2, seed=4, options=DataOptions(flip=True)
    )
    without = BatchPlan(_squares(7), batch_size=2, seed=4, options=DataOptions(flip=True))
    for step in range(12):
        own = [slot for slot in with_prior.slots(step) if slot.kind == INSTANCE]
        assert own == without.slots(step)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (3, 8), (5, 5)])
def test_fewer_pictures_than_the_batch(count, batch_size):
    plan = BatchPlan(_squares(count), _squares(2), batch_size=batch_size)
    assert plan.steps_per_epoch == 1
    assert [len(plan.slots(step)) for step in range(3)] == [2 * count] * 3


def test_epochs_and_seeds_differ():
    plan = BatchPlan(_squares(20), batch_size=20)
    orders = {tuple(slot.image for slot in plan.slots(step)) for step in range(10)}
    assert len(orders) == 10
    other = BatchPlan(_squares(20), batch_size=20, seed=1)
    assert other.slots(0) != plan.slots(0)


def test_repeats_are_spread_over_the_epoch():
    plan = BatchPlan(_squares(4, repeats=10), batch_size=1)
    order = [plan.slots(step)[0].image for step in range(plan.steps_per_epoch)]
    for first in range(0, 40, 4):
        assert sorted(order[first : first + 4]) == [0, 1, 2, 3]


def test_concepts_are_mixed_in_their_share():
    plan = BatchPlan(_squares(40, 0) + _squares(20, 1), batch_size=1)
    concepts = [plan.slots(step)[0].concept for step in range(60)]
    for first in range(0, 60, 15):
        assert 3 <= sum(concepts[first : first + 15]) <= 7


def test_flips_are_fair_and_drawn_anew():
    plan = BatchPlan(
        _squares(10, repeats=2), _squares(10), batch_size=10, options=DataOptions(flip=True)
    )
    slots = [slot for step in range(100) for slot in plan.slots(step)]
    for kind in (INSTANCE, CLASS):
        flips = [slot.view.flip for slot in slots if slot.kind == kind]
        assert 400 < sum(flips) < 600
    by_picture: dict[int, set[bool]] = {}
    for slot in slots:
        by_picture.setdefault(slot.image, set()).add(slot.view.flip)
    assert all(both == {True, False} for both in by_picture.values())
    assert not any(s.view.flip for s in BatchPlan(_squares(9), batch_size=9).slots(0))


def test_random_crops_reach_both_ends():
    wide = [Entry((64, 640), (64, 64))]
    for positions, expected in ((3, {0, 288, 576}), (1, {288})):
        plan = BatchPlan(wide, options=DataOptions(crop="random", crop_positions=positions))
        assert {plan.slots(step)[0].view.left for step in range(60)} == expected
    plan = BatchPlan(wide, options=DataOptions(crop="random", crop_positions=0))
    lefts = {plan.slots(step)[0].view.left for step in range(60)}
    assert len(lefts) > 40
    assert {
        slot.view.left for slot in BatchPlan(wide, options=DataOptions(crop="center")).slots(0)
    } == {288}


def test_parts_of_one_size():
    plan = BatchPlan(_squares(2), [Entry((64, 64), (64, 128))], batch_size=2)
    parts = groups(plan.slots(0))
    assert [[slot.kind for slot in part] for part in parts] == [[INSTANCE] * 2, [CLASS] * 2]
    same = BatchPlan(_squares(2), _squares(3), batch_size=2)
    assert groups(same.slots(0)) == [same.slots(0)]


def test_no_pictures():
    with pytest.raises(UserError):
        BatchPlan([])


def test_a_known_plan_stays_what_it_is():
    """Resuming a run of an older version must find the same pictures in the same steps."""
    plan = BatchPlan(_squares(5), _squares(3), batch_size=2, seed=7, options=DataOptions(flip=True))
    got = [[(s.number, s.kind[0], s.image, s.view.flip) for s in plan.slots(i)] for i in range(3)]
    assert got == KNOWN


KNOWN = [
    [(0, "i", 1, True), (2, "i", 4, False), (1, "c", 0, False), (3, "c", 2, False)],
    [(0, "i", 0, True), (2, "i", 2, True), (1, "c", 1, False), (3, "c", 2, True)],
    [(0, "i", 3, True), (1, "c", 1, True)],
]
