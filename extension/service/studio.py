"""The one object that the tab and the API call."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from dreambooth_core.commands.caption import MODELS
from dreambooth_core.config.catalogue import budget_of
from dreambooth_core.config.describe import describe, renamed
from dreambooth_core.errors import UserError
from dreambooth_core.jobs import VERBS
from dreambooth_core.options import TrainConfig
from dreambooth_core.options.marking import mark_run

from ..host.base import Host
from . import token, types
from .bases import Bases
from .handover import Handover
from .paths import Paths
from .presets import Presets
from .results import Results
from .runs import Runs
from .setup import Setup
from .subjects import Subjects
from .token import Token
from .tools import Tools
from .types import Values


class Studio:
    """The engine at ``root`` in the hands of ``host``: its parts, each for one thing, and what
    needs several of them, or names files.

    Every method may be called from any thread, and raises ``UserError`` (one line for a person)
    or another ``DreamBoothError`` and nothing else on purpose. Answers are the plain dataclasses
    of ``service.types``. Light calls return in milliseconds; those marked *slow* ask the engine
    and take seconds, the first time more.
    """

    def __init__(self, root: Path, host: Host) -> None:
        self.root = root
        self.host = host
        self._opened: list[Path] = []
        self.paths = self._paths(anywhere=not host.exposure().remote)
        self.setup = Setup(root)
        self.subjects = Subjects(host)
        self.bases = Bases(root, host)
        self.presets = Presets(root, host)
        self.results = Results(host)
        self.handover = Handover(host)
        self.runs = Runs(root, host, self.handover, self.results)
        self.tools = Tools(root, host)

    @cached_property
    def token(self) -> Token:
        """What callers of the API show; made when it is first asked for, new at each start."""
        return token.make(self.host.folders().home)

    def confined(self) -> Studio:
        """The same studio for callers that may only name files in allowed folders: the API."""
        view = copy.copy(self)
        view.paths = self._paths(anywhere=False)
        return view

    def _paths(self, *, anywhere: bool) -> Paths:
        return Paths(self.host.folders, anywhere=anywhere, opened=self._opened, listed=self._listed)

    def _listed(self) -> list[Path]:
        """The files that the host offers to its user by name."""
        found = [one.path for one in self.host.checkpoints()]
        return [*found, *(Path(one.path) for one in self.tools.adapters())]

    # -- subjects --------------------------------------------------------------------------------

    def pictures(self, folder: str) -> types.Pictures:
        """A folder's images: what is taken, what is skipped and why, captions, thumbnails."""
        place = self.paths.read(folder, "images", "the image folder")
        found = self.subjects.pictures(place, self.paths.may_read)
        if self.paths.anywhere and found.taken:
            self._open(place)
        return found

    def _open(self, folder: Path) -> None:
        """Remembers an image folder that the user opened in the page: the API may use it too.
        Never one that holds the host itself."""
        data = Path(os.path.realpath(self.host.folders().data))
        if folder not in self._opened and folder != data and folder not in data.parents:
            self._opened.append(folder)

    def upload(self, files: Sequence[str], name: str) -> str:
        """Copies files that came through the page into a folder of their own.

        Args:
            files: where the page put them.
            name: the subject's; the folder's name is made of it.

        Returns:
            The folder; the value of ``concepts[n].images``.
        """
        return self.subjects.upload([Path(file) for file in files], name)

    def set_caption(self, picture: str, text: str) -> None:
        """Writes the caption file beside an image; an empty text removes it."""
        self.subjects.set_caption(self.paths.image(picture), text)

    def caption(self, folder: str, **asked: Any) -> str:
        """Starts writing captions beside a folder's images, as ``dreambooth caption`` does; returns
        the id of its task.

        Args:
            folder: of images.
            asked: ``model`` (one that has a short name), ``trigger``, ``prefix``, ``suffix``,
                ``never``, ``overwrite`` and ``download``, as the command has them.
        """
        place = self.paths.read(folder, "images", "the image folder")
        model = asked.get("model", MODELS[0])
        if model not in MODELS:
            what = f"{str(model)[:60]!r} is no caption model"
            raise UserError(what, where="model", do=f"Known: {', '.join(MODELS)}.")
        return self.tools.begin("caption", {"folder": str(place), **asked})

    def set_crop(self, picture: str, sides: Sequence[float] | None) -> None:
        """Writes the crop beside an image: left, top, right and bottom as shares of its width and
        height; ``None`` removes it."""
        self.subjects.set_crop(self.paths.image(picture), sides)

    def suggest_crop(self, picture: str) -> types.Suggestion:
        """The part of an image that stands out from its edges."""
        file = self.paths.image(picture)
        if not self.paths.may_read(file):
            raise UserError("this image is a link to elsewhere", where=picture[:300])
        return types.Suggestion(self.subjects.suggest_crop(file))

    # -- bases ----------------------------------------------------------------------------------

    def base_info(self, name: str) -> types.BaseInfo:
        """Family and prediction type of a base, by its name or path. *Slow* the first time."""
        return self.bases.info(name, self.paths)

    # -- configuration ---------------------------------------------------------------------------

    def schema(self) -> dict[str, Any]:
        """Every option of a run, as ``dreambooth_core.config.describe.describe`` tells them."""
        return describe(TrainConfig)

    def check(self, values: Values, presets: Sequence[str] = ()) -> types.Report:
        """What would run: wrong values by key, or the forecast. *Slow*.

        Args:
            values: what the user set.
            presets: names of presets below them, in order.
        """
        values, problems = self._settle(values, presets)
        return self.runs.check(values, self.presets.shipped(presets), problems)

    # -- runs -----------------------------------------------------------------------------------

    def start(self, values: Values, name: str = "", presets: Sequence[str] = ()) -> str:
        """Starts a run, or puts it into the queue; returns its name. *Slow* (it is checked).

        The host's model leaves the GPU first, as the settings say, and comes back whatever
        happens to the run.
        """
        values, problems = self._settle(values, presets)
        for problem in problems:
            raise UserError(problem.message)
        return self.runs.start(values, name, self.presets.shipped(presets))

    def _settle(self, values: Values, presets: Sequence[str]) -> tuple[Values, list[types.Problem]]:
        """The user's presets and values in one, their paths checked alike; the memory that is free
        is the host's to say, since its own model will leave."""
        own: Values = {}
        for name in presets:
            own |= self.presets.values(name) if self.presets.is_own(name) else {}
        values = own | renamed(TrainConfig, values)
        named = any(map(budget_of, presets))
        if not named and values.get("memory.budget", "auto") == "auto":
            free = self.presets.memory_choice().budget
            values |= {"memory.budget": free} if free else {}
        values, problems = self.paths.settle(values)
        if problems:
            return values, problems
        # Found in the host's own folders: what nobody named, of a base in several files.
        parts = self.bases.parts(str(values.get("base.model") or ""), self.paths)
        return {**parts, **{k: v for k, v in values.items() if v or k not in parts}}, problems

    def verbs(self) -> dict[str, str]:
        """What a run can be asked, and what it means."""
        return {**VERBS, "kill": "end the process, whatever it is doing; what was saved stays"}

    def mark(self, run: str, image: str, mark: str) -> None:
        """Calls an image ``good`` or ``bad``; an empty mark takes that back.

        Args:
            image: its name among ``runs.marks``.
        """
        mark_run(self.runs.folder(run), {image: mark})

    def evaluate(self, run: str, **asked: Any) -> str:
        """Starts judging what a run learned, as ``dreambooth evaluate`` does; returns the id of its
        task.

        Args:
            run: its name.
            asked: ``kind``, ``saves`` and ``download``, as the command has them.
        """
        folder = self.runs.folder(run).path
        for other in self.runs.all():
            if other.state == "running":
                raise UserError("a run is at work, and images need its memory", where=other.name)
        return self.tools.begin("evaluate", {"runs": [str(folder)], **asked})

    def evaluation(self, run: str) -> Path:
        """The page that :meth:`evaluate` wrote.

        Raises:
            UserError: there is none.
        """
        found = self.runs.judged(run)
        if found is None:
            raise UserError("this run was not evaluated yet", where=run)
        return found

    # -- results --------------------------------------------------------------------------------

    def saved(self, run: str) -> list[types.Saved]:
        """What a run has saved that a host can load, the first step first."""
        return self.results.saved(self.runs.folder(run))

    def publish(self, run: str, step: int | None = None) -> types.Published:
        """Puts a saved step (by default the last) where the host lists it, with preview and
        trigger words. Under the name that it has if it is there already."""
        return self.results.publish(self.runs.folder(run), step)

    def published(self, run: str) -> list[types.Published]:
        """What of a run is where the host lists it."""
        return self.results.published(self.runs.folder(run))

    def select_checkpoint(self, name: str) -> None:
        """Makes the host generate with a checkpoint, by its name or path. *Slow*."""
        self.host.select_checkpoint(Path(self.bases.named(name).path))

    # -- adapters and models ----------------------------------------------------------------------

    def inspect(self, file: str) -> dict[str, Any]:
        """What a model file is, as ``dreambooth inspect --json`` tells it. *Slow* at first."""
        return self.tools.inspect(self.paths.read(file, "any", "the file"))

    def run_tool(self, tool: str, values: Mapping[str, Any]) -> str:
        """Starts a tool; returns the id of its task.

        Args:
            tool: one of ``tools.all()``.
            values: by the names of its options. Files are paths, or names in the Lora folder or
                among the checkpoints. An output without a folder goes to where the host lists
                it: adapters to the Lora folder, models to the checkpoints; an existing file is
                never overwritten, the name gets a number.
        """
        return self.tools.start(tool, values, self.paths)
