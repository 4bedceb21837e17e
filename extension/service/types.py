"""What the service answers with: plain data, which ``dataclasses.asdict`` turns into JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Values = dict[str, Any]
"""A configuration by dotted keys, as ``dreambooth_core.config.describe.flatten`` makes it:
``{"optim.learning_rate": 1e-4, "concepts[0].images": "/pictures"}``. Only what differs from the
defaults and the presets has to be there."""


@dataclass(frozen=True)
class Plan:
    """What setting up the engine would download."""

    torch: str = ""
    """The build of torch."""
    because: str = ""
    warning: str = ""
    megabytes: int = 0
    disk_megabytes: int = 0
    """What it needs on the disk, and how much is free there."""
    free_megabytes: int = 0
    sources: list[str] = field(default_factory=list)
    """Where it comes from."""
    problem: str = ""
    """Why it cannot be built here, in one line; empty if it can."""


@dataclass(frozen=True)
class Environment:
    """The engine's own Python environment."""

    ready: bool
    reason: str
    """Why it is not ready, in a few words."""
    home: str
    """The folder that it is, or will be, in."""
    building: bool = False
    plan: Plan | None = None
    """None when ready."""


@dataclass(frozen=True)
class BuildLog:
    """What an installation said since an offset."""

    lines: list[str]
    offset: int
    """Give it to the next call."""
    running: bool
    step: str = ""
    """``2/4 88 packages``."""
    done: int = 0
    total: int = 0
    """How far the step is, in ``unit``; 0 where nothing is known."""
    unit: str = ""
    ok: bool | None = None
    """How it ended; None while it has not."""


@dataclass(frozen=True)
class Picture:
    """An image that would be trained on."""

    name: str
    """Its path below the folder."""
    path: str
    thumbnail: str
    """A small copy that the host's page may show; empty where none could be made."""
    width: int
    height: int
    caption: str
    """The text of its caption file; empty if there is none."""
    notes: list[str]
    repeats: int = 1
    crop: list[float] | None = None
    """Left, top, right and bottom of the part that is trained on, as shares of width and height;
    ``None``: all of it."""


@dataclass(frozen=True)
class Suggestion:
    """A crop to suggest."""

    sides: list[float] | None
    """As ``Picture.crop``; ``None`` where nothing stands out."""


@dataclass(frozen=True)
class Pictures:
    """A folder of images, everything in it accounted for."""

    folder: str
    taken: list[Picture]
    skipped: list[dict[str, str]]
    """``name`` and ``reason`` of each."""
    warnings: list[str]


@dataclass(frozen=True)
class Base:
    """A model that training can start from."""

    name: str
    """Shown to people, and unique."""
    path: str
    """The value of ``base.model``."""
    current: bool = False
    """Whether the host generates with it now."""


@dataclass(frozen=True)
class BaseInfo:
    """What a base is."""

    name: str
    path: str
    label: str
    family: str
    """``sd1``, ``sd2``, ``sdxl`` … or empty."""
    prediction_type: str
    """``epsilon``, ``v_prediction``, or empty where the file does not say."""
    trainable: bool
    problem: str = ""
    """Why it cannot be trained from, in one line."""
    parts: Values = field(default_factory=dict)
    """What the base's file does not hold and the host's folders do, by the configuration's keys."""


@dataclass(frozen=True)
class Preset:
    """A preset, ours or the user's."""

    name: str
    kind: str
    """``recipe`` or ``own``."""
    about: str = ""


@dataclass(frozen=True)
class MemoryChoice:
    """The memory that a run may take on this machine."""

    budget: str
    """The value of ``memory.budget``; empty where there is no GPU."""
    reason: str
    """In words."""
    free_gib: float | None = None
    total_gib: float | None = None


@dataclass(frozen=True)
class Problem:
    """Something wrong with a value."""

    key: str
    """The value's dotted key, or empty where it is none value's alone."""
    message: str
    """One line."""


@dataclass(frozen=True)
class Report:
    """What would run."""

    problems: list[Problem]
    """Empty: it can start."""
    forecast: dict[str, Any] | None = None
    """As ``dreambooth check --json`` tells it: ``base``, ``family_label``, ``prediction_type``,
    ``device``, ``precision``, ``steps``, ``steps_per_epoch``, ``trainable`` (component → count),
    ``data``, ``captions``, ``class_images``, ``memory`` (bytes; ``peak``), ``warnings``."""
    effective: Values = field(default_factory=dict)
    """Every value that would be in effect."""
    seconds: float | None = None
    """About how long training takes, by the pace of the last run like it; None if unknown."""

    @property
    def ok(self) -> bool:
        """Whether it can start."""
        return not self.problems


@dataclass(frozen=True)
class Status:
    """A run at a glance. Times are seconds since 1970."""

    name: str
    state: str
    """``waiting``, ``running``, ``stopped``, ``finished``, ``failed`` or ``lost``."""
    path: str
    stage: str = ""
    """``queue``, a preparation (``class_images``, ``latents`` …) or ``train``."""
    stage_step: int = 0
    stage_steps: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    best_step: int | None = None
    """The step whose result is the best so far, where that is measured."""
    seconds_per_step: float | None = None
    seconds_left: float | None = None
    memory_bytes: int | None = None
    """Peak of the device's memory so far."""
    compile_seconds: float | None = None
    """What torch.compile has taken, which is in no step's pace."""
    message: str = ""
    """Why it waits, failed, stopped or was lost."""
    ahead: int = 0
    """Runs before it in the queue."""
    created: float | None = None
    started: float | None = None
    updated: float | None = None
    ended: float | None = None
    warnings: int = 0
    samples: list[str] = field(default_factory=list)
    """Absolute paths, oldest first."""
    results: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)
    """Names under which the host lists results of it."""
    method: str = ""
    base: str = ""
    host: str = ""
    """What the host gave up for it, in words; empty when it has everything back."""

    @property
    def live(self) -> bool:
        """Whether it will go on by itself."""
        return self.state in ("waiting", "running")


@dataclass(frozen=True)
class Events:
    """What happened in a run since an offset."""

    events: list[dict[str, Any]]
    """As ``dreambooth_core.jobs.events`` describes them."""
    offset: int
    status: Status


@dataclass(frozen=True)
class Saved:
    """Something that a run has saved and a host can load."""

    step: int
    path: str
    kind: str
    """``adapter``, ``checkpoint`` or ``embedding``."""
    final: bool
    samples: list[str]
    """The validation images of that step; absolute paths."""
    published: str = ""
    """The name under which the host lists it; empty if it does not."""


@dataclass(frozen=True)
class Marked:
    """An image that a run has made, and what somebody called it."""

    image: str
    """Its name among the run's samples."""
    path: str
    """Absolute."""
    prompt: str
    seed: int
    mark: str
    """``good``, ``bad`` or empty."""


@dataclass(frozen=True)
class Published:
    """A result where the host lists it."""

    name: str
    """As the host calls it."""
    kind: str
    path: str
    prompt: str
    """What to put into the prompt: trigger words and, for an adapter, ``<lora:name:1>``."""


@dataclass(frozen=True)
class ToolOption:
    """One option of a tool, by the command's own dataclass."""

    name: str
    """The key in the tool's values."""
    label: str
    help: str
    type: str
    """``str``, ``int``, ``float``, ``bool``, ``choice``, ``file``, ``output``, ``weighted``
    (adapters, each ``{"file": …, "weight": …}``), ``list`` (of texts) or ``numbers``."""
    required: bool
    default: Any = None
    choices: list[str] | None = None


@dataclass(frozen=True)
class Task:
    """A tool at work."""

    id: str
    tool: str
    state: str
    """``waiting``, ``running``, ``done``, ``failed`` or ``cancelled``."""
    progress: float | None = None
    """0 to 1; None where the tool does not say."""
    message: str = ""
    result: dict[str, Any] | None = None
    """The command's own report."""
    files: list[str] = field(default_factory=list)
    """What it wrote."""
