"""Which image is in which batch, and how it is cut: a pure function of the seed and the step.

Nothing is drawn in sequence, so a run that resumes needs to know its step and nothing else, and a
plan for two processes is the plan for one, shared out.

Words: a *step* is one step of the optimizer; it has ``accumulation`` *micro batches* of
``batch_size × processes`` *slots* each. An *epoch* shows every instance image as often as it
repeats. Batches that are not full are kept and are smaller, so the last of a bucket or of an epoch
can be; nothing is dropped and nothing is shown twice. An epoch ends with a step of its own. A
*view* is the geometry of scaling and cutting, without pixels. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from functools import lru_cache

from dreambooth_core.data.changes import Change, Changes
from dreambooth_core.data.options import DataOptions
from dreambooth_core.errors import UserError
from dreambooth_core.randomness import Key, permutation, uniform

Size = tuple[int, int]
"""(height, width) in pixels."""
INSTANCE = "instance"
CLASS = "class"
RIVAL = "rival"
"""The bad image of a pair, in the place of the good one."""


@dataclass(frozen=True)
class View:
    """One way of looking at an image: scaled to cover ``size``, cut there, perhaps mirrored, then
    perhaps changed.

    ``top`` and ``left`` are pixels in the scaled image, before mirroring.
    """

    height: int
    width: int
    top: int = 0
    left: int = 0
    flip: bool = False
    change: Change | None = None

    @property
    def size(self) -> Size:
        """(height, width) of the result."""
        return self.height, self.width

    @property
    def crop(self) -> tuple[int, int]:
        """(top, left) in the scaled image."""
        return self.top, self.left

    @property
    def key(self) -> str:
        """Text that tells views apart, for caches."""
        text = f"{self.height}x{self.width}+{self.top}+{self.left}{'f' if self.flip else ''}"
        return text if self.change is None else f"{text}{self.change.key}"


@dataclass(frozen=True)
class Entry:
    """What the plan has to know of an image."""

    original: Size
    """(height, width) of the upright image."""
    size: Size
    """(height, width) to train at: its bucket."""
    concept: int = 0
    repeats: int = 1


@dataclass(frozen=True)
class Slot:
    """One sample of one step."""

    number: int
    """Unlike that of any other slot of this step; even for instance, odd for class images. It
    does not depend on accumulation, processes or prior preservation, so noise can be keyed by
    (seed, step, number)."""
    kind: str
    """``"instance"``, ``"class"`` or ``"rival"``."""
    image: int
    """Index among the images of its kind."""
    concept: int
    epoch: int
    turn: int
    """Which showing of the image: its repeat in this epoch, or a class image's round."""
    view: View
    counts: bool = True
    """False for a filler: a process without a sample of its own goes through the motions, so that
    the others need not wait for it, and its loss has weight 0."""
    is_kept: bool = False
    """Whether what the base answers to it was asked beforehand: it comes back, always the same."""

    def key(self, step: int) -> tuple[Key, ...]:
        """What its random numbers depend on besides the seed."""
        return ("kept", self.image, self.turn) if self.is_kept else (step, self.number)

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.view.size


@dataclass(frozen=True)
class _Showing:
    """An instance image's place in an epoch."""

    image: int
    turn: int
    ordinal: int
    """How many showings of its concept came before it in this epoch."""


@dataclass(eq=False)
class BatchPlan:
    """The batches of a run."""

    instances: Sequence[Entry]
    """The subject's images."""
    classes: Sequence[Entry] = ()
    """The class images; none without prior preservation. Each instance slot has a class slot of its
    concept beside it; the class images of a concept take turns, each seen once before any is seen
    again."""
    _: KW_ONLY
    seed: int = 0
    """Of the run."""
    batch_size: int = 1
    """Instance slots of a micro batch in one process."""
    accumulation: int = 1
    """Micro batches of a step."""
    processes: int = 1
    """How many processes share a step."""
    options: DataOptions = field(default_factory=DataOptions)
    """How images are cut, mirrored and changed."""
    answers: Mapping[int, int] = field(default_factory=dict)
    """Of each concept, how many of the base's answers to class slots are kept: so many slots there
    are, which come back again and again. They are asked beforehand."""

    def __post_init__(self) -> None:
        if not self.instances:
            raise UserError("there is no image to train on", where="concepts")
        data = self.options
        changes = Changes(data.rotation, data.color_jitter, data.variants)
        self.changes = changes if data.rotation or data.color_jitter else None
        self._class_members: dict[int, list[int]] = {}
        for index, entry in enumerate(self.classes):
            self._class_members.setdefault(entry.concept, []).append(index)
        self._per_concept = Counter[int]()
        self._per_size = Counter[Size]()
        for entry in self.instances:
            self._per_concept[entry.concept] += entry.repeats
            self._per_size[entry.size] += entry.repeats
        self._batches = lru_cache(maxsize=2)(self._batches_of)
        self._class_order = lru_cache(maxsize=64)(permutation)

    @property
    def global_batch_size(self) -> int:
        """Instance slots of a full micro batch, over all processes."""
        return self.batch_size * self.processes

    @property
    def micro_batches_per_epoch(self) -> int:
        """Each bucket's last batch may be smaller than the others."""
        return sum(-(-count // self.global_batch_size) for count in self._per_size.values())

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the optimizer; the last may have fewer micro batches than the others."""
        return -(-self.micro_batches_per_epoch // self.accumulation)

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, that a step from 0 belongs to."""
        return step // self.steps_per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Whether the step is the last of its epoch."""
        return (step + 1) % self.steps_per_epoch == 0

    def slots(self, step: int) -> list[Slot]:
        """All slots of a step, over all micro batches and processes."""
        return [slot for batch in self.micro_batches(step) for slot in batch]

    def micro_batches(self, step: int) -> list[list[Slot]]:
        """The step's micro batches: instance slots of one size, then the class slots."""
        epoch, place_in_epoch = divmod(step, self.steps_per_epoch)
        start = place_in_epoch * self.accumulation
        chosen = self._batches(epoch)[start : start + self.accumulation]
        result = []
        number = 0
        for showings in chosen:
            numbered = list(enumerate(showings, number))
            own = [self._instance_slot(n, epoch, showing) for n, showing in numbered]
            beside = [self._class_slot(n, epoch, showing) for n, showing in numbered]
            result.append(own + [slot for slot in beside if slot is not None])
            number += len(showings)
        return result

    def share(self, batch: Sequence[Slot], rank: int) -> list[Slot]:
        """The part of a micro batch that one process computes.

        Instance slots are dealt out in runs as even as possible, and a class slot goes with its
        instance slot. A process that gets nothing is given a filler (``counts`` is false).
        """
        own = [slot for slot in batch if slot.kind == INSTANCE]
        first, last = (len(own) * r // self.processes for r in (rank, rank + 1))
        mine = {slot.number for slot in own[first:last]}
        part = [slot for slot in batch if slot.number - slot.number % 2 in mine]
        return part or [replace(own[0], counts=False)]

    def passes(self, step: int, rank: int = 0) -> tuple[list[list[Slot]], tuple[int, int]]:
        """What one process passes through the models in a step: slots in groups of one size; and
        how many instance and class slots the whole step has.

        Every process has as many groups of a micro batch as any: none may pass through the models
        alone, since all bring their pieces of the weights.
        """
        batches = self.micro_batches(step)
        found = []
        for batch in batches:
            shares = [groups(self.share(batch, each)) for each in range(self.processes)]
            own = shares[rank]
            filler = [replace(own[0][0], counts=False)]
            found += own + [filler] * (max(map(len, shares)) - len(own))
        kinds = Counter(slot.kind for batch in batches for slot in batch)
        return found, (kinds[INSTANCE], kinds[CLASS])

    def views(self) -> list[tuple[str, int, View]]:
        """Every (kind, image, view) that the plan can ask for, to encode them beforehand.

        Raises:
            ValueError: Crops are at any place, or changes of any size, so there is no end to them.
        """
        if not self.options.has_finite_views:
            raise ValueError("views without end cannot be listed")
        places = [(0.5, 0.5)]
        if self.options.crop == "random":
            places = [self._grid(index) for index in range(self.options.crop_positions)]
        found = []
        for kind, entries in ((INSTANCE, self.instances), (CLASS, self.classes)):
            for image, entry in enumerate(entries):
                changes: list[Change | None] = [None]
                if kind == INSTANCE and self.changes is not None:
                    changes = self.changes.all_of(self.seed, image)
                seen = dict.fromkeys(
                    place(entry.original, entry.size, at, flip=flip, change=change)
                    for at in places
                    for flip in ((False, True) if self.options.flip else (False,))
                    for change in changes
                )
                found += [(kind, image, view) for view in seen]
        return found

    def _grid(self, index: int) -> tuple[float, float]:
        """An image overhangs on one side only, so one number places it on both."""
        last = self.options.crop_positions - 1
        share = index / last if last > 0 else 0.5
        return share, share

    def _batches_of(self, epoch: int) -> list[list[_Showing]]:
        """The micro batches of an epoch: a batch is ready as soon as its bucket has enough."""
        waiting: dict[Size, list[_Showing]] = {}
        ready = []
        for showing in self._order(epoch):
            size = self.instances[showing.image].size
            waiting.setdefault(size, []).append(showing)
            if len(waiting[size]) == self.global_batch_size:
                ready.append(waiting.pop(size))
        return ready + list(waiting.values())

    def _order(self, epoch: int) -> list[_Showing]:
        """The showings of an epoch, shuffled evenly.

        The repeats of an image are spread over the epoch, one in each of as many equal parts, and
        so are the showings of each concept: a stretch of steps has every concept in its share.
        """
        by_concept: dict[int, list[tuple[float, int, int]]] = {}
        for image, entry in enumerate(self.instances):
            for turn in range(entry.repeats):
                drawn = uniform("order", self.seed, epoch, image, turn)
                member = ((turn + drawn) / entry.repeats, image, turn)
                by_concept.setdefault(entry.concept, []).append(member)
        spread: list[tuple[float, int, _Showing]] = []
        for concept, members in by_concept.items():
            for rank, (_, image, turn) in enumerate(sorted(members)):
                drawn = uniform("spread", self.seed, epoch, concept, rank)
                where = (rank + drawn) / len(members)
                spread.append((where, concept, _Showing(image, turn, rank)))
        spread.sort(key=lambda member: member[:2])
        return [showing for _, _, showing in spread]

    def _instance_slot(self, number: int, epoch: int, showing: _Showing) -> Slot:
        entry = self.instances[showing.image]
        view = self._view(entry, INSTANCE, epoch, showing.image, showing.turn)
        concept, turn = entry.concept, showing.turn
        return Slot(2 * number, INSTANCE, showing.image, concept, epoch, turn, view)

    def _class_slot(self, number: int, epoch: int, showing: _Showing) -> Slot | None:
        concept = self.instances[showing.image].concept
        members = self._class_members.get(concept)
        if not members:
            return None
        # How many class slots of this concept the whole run had before this one.
        before = epoch * self._per_concept[concept] + showing.ordinal
        turn, place_in_round = divmod(before, len(members))
        order = self._class_order(len(members), CLASS, self.seed, concept, turn)
        image = members[order[place_in_round]]
        rounds = self._rounds(concept)
        turn = turn % rounds if rounds else turn
        return self._of_class(2 * number + 1, image, epoch, turn, is_kept=rounds > 0)

    def _of_class(self, number: int, image: int, epoch: int, turn: int, *, is_kept: bool) -> Slot:
        entry = self.classes[image]
        view = self._view(entry, CLASS, 0, image, turn)
        return Slot(number, CLASS, image, entry.concept, epoch, turn, view, is_kept=is_kept)

    def _rounds(self, concept: int) -> int:
        """After how many rounds a concept's class slots come back; 0: never."""
        wanted = self.answers.get(concept, 0)
        return -(-wanted // len(self._class_members[concept])) if wanted else 0

    def kept_slots(self) -> list[Slot]:
        """Every class slot to which the base's answer is kept."""
        return [
            self._of_class(1, image, 0, turn, is_kept=True)
            for concept, members in self._class_members.items()
            for turn in range(self._rounds(concept))
            for image in members
        ]

    def _view(self, entry: Entry, kind: str, epoch: int, image: int, turn: int) -> View:
        drawn = (self.seed, kind, epoch, image, turn)
        options = self.options
        flip = options.flip and uniform("flip", *drawn) < 0.5
        at = (0.5, 0.5)
        if options.crop == "random":
            at = uniform("crop", *drawn), uniform("crop across", *drawn)
            if options.crop_positions:
                at = self._grid(int(at[0] * options.crop_positions))
        change = None
        if kind == INSTANCE and self.changes is not None:
            change = self.changes.one_of(self.seed, image, epoch, turn)
        return place(entry.original, entry.size, at, flip=flip, change=change)


def groups(batch: Sequence[Slot]) -> list[list[Slot]]:
    """A micro batch in parts of one size each, so that each part can be one tensor.

    Class images keep their own bucket, which need not be that of the subject's images.
    """
    parts: dict[Size, list[Slot]] = {}
    for slot in batch:
        parts.setdefault(slot.size, []).append(slot)
    return list(parts.values())


def scaled(original: Size, target: Size) -> Size:
    """The smallest (height, width) of the original's shape that covers the target.

    One side is the target's exactly, the other is rounded and at least the target's.
    """
    height, width = original
    # Integers decide which side is the tight one, so that rounding never leaves a gap.
    if target[0] * width >= target[1] * height:
        return target[0], max(target[1], round(width * target[0] / height))
    return max(target[0], round(height * target[1] / width)), target[1]


def place(
    original: Size,
    target: Size,
    at: tuple[float, float] = (0.5, 0.5),
    *,
    flip: bool = False,
    change: Change | None = None,
) -> View:
    """The view of ``target`` size at a relative place: (0, 0) is top left, (1, 1) bottom right."""
    height, width = scaled(original, target)
    top = round((height - target[0]) * at[0])
    left = round((width - target[1]) * at[1])
    return View(target[0], target[1], top, left, flip, change)


def crop_top_left(original: Size, view: View) -> tuple[int, int]:
    """What SDXL is told of the crop: (top, left) in the scaled image as the net sees it.

    In a mirrored image the left edge is the right edge of the original.
    """
    if not view.flip:
        return view.crop
    width = scaled(original, view.size)[1]
    return view.top, width - view.width - view.left
