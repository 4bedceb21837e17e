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
    """The engine at ``root`` in the hands of ``host``.

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
        self._setup = Setup(root)
        self._subjects = Subjects(host)
        self._bases = Bases(root, host)
        self._presets = Presets(root, host)
        self._results = Results(host)
        self._handover = Handover(host)
        self._runs = Runs(root, host, self._handover, self._results)
        self._tools = Tools(root, host)

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
        return [*found, *(Path(one.path) for one in self._tools.adapters())]

    # -- the engine's environment --------------------------------------------------------------

    def environment(self) -> types.Environment:
        """Whether the engine can be used, and if not what setting it up would download."""
        return self._setup.state()

    def build(self) -> None:
        """Starts setting up the engine, as a process that outlives the page and the host."""
        self._setup.build()

    def cancel_build(self) -> None:
        """Ends setting up the engine; nothing of it is left."""
        self._setup.cancel()

    def build_log(self, offset: int = 0) -> types.BuildLog:
        """What the installation said since ``offset``."""
        return self._setup.log(offset)

    # -- subjects --------------------------------------------------------------------------------

    def pictures(self, folder: str) -> types.Pictures:
        """A folder's images: what is taken, what is skipped and why, captions, thumbnails."""
        place = self.paths.read(folder, "images", "the image folder")
        found = self._subjects.pictures(place, self.paths.may_read)
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
        return self._subjects.upload([Path(file) for file in files], name)

    def set_caption(self, picture: str, text: str) -> None:
        """Writes the caption file beside an image; an empty text removes it."""
        self._subjects.set_caption(self.paths.image(picture), text)

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
        return self._tools.begin("caption", {"folder": str(place), **asked})

    def set_crop(self, picture: str, sides: Sequence[float] | None) -> None:
        """Writes the crop beside an image: left, top, right and bottom as shares of its width and
        height; ``None`` removes it."""
        self._subjects.set_crop(self.paths.image(picture), sides)

    def suggest_crop(self, picture: str) -> types.Suggestion:
        """The part of an image that stands out from its edges."""
        file = self.paths.image(picture)
        if not self.paths.may_read(file):
            raise UserError("this image is a link to elsewhere", where=picture[:300])
        return types.Suggestion(self._subjects.suggest_crop(file))

    # -- bases ----------------------------------------------------------------------------------

    def bases(self) -> list[types.Base]:
        """What training can start from: the host's checkpoints, then the embedded bases."""
        return self._bases.all()

    def current_base(self) -> types.Base:
        """What the host generates with; the first of :meth:`bases` where it has nothing."""
        return self._bases.current()

    def base_info(self, name: str) -> types.BaseInfo:
        """Family and prediction type of a base, by its name or path. *Slow* the first time."""
        return self._bases.info(name, self.paths)

    # -- configuration ---------------------------------------------------------------------------

    def schema(self) -> dict[str, Any]:
        """Every option of a run, as ``dreambooth_core.config.describe.describe`` tells them."""
        return describe(TrainConfig)

    def presets(self) -> list[types.Preset]:
        """Recipes, and the user's own."""
        return self._presets.all()

    def preset(self, name: str) -> Values:
        """What a preset sets. *Slow* the first time."""
        return self._presets.values(name)

    def save_preset(self, name: str, values: Values) -> types.Preset:
        """Keeps values under a name among the user's own; an older one of that name is replaced."""
        return self._presets.save(name, values)

    def delete_preset(self, name: str) -> None:
        """Deletes one of the user's own presets."""
        self._presets.delete(name)

    def recipe(self, kind: str, method: str, family: str) -> str:
        """The recipe for a kind of subject (``object``, ``person``, ``style``), a method and a
        family; empty where there is none."""
        return self._presets.recipe(kind, method, family)

    def memory_choice(self) -> types.MemoryChoice:
        """The memory budget that ``auto`` stands for (the host's model counted as free)."""
        return self._presets.memory_choice()

    def check(self, values: Values, presets: Sequence[str] = ()) -> types.Report:
        """What would run: wrong values by key, or the forecast. *Slow*.

        Args:
            values: what the user set.
            presets: names of presets below them, in order.
        """
        values, problems = self._settle(values, presets)
        return self._runs.check(values, self._presets.shipped(presets), problems)

    # -- runs -----------------------------------------------------------------------------------

    def start(self, values: Values, name: str = "", presets: Sequence[str] = ()) -> str:
        """Starts a run, or puts it into the queue; returns its name. *Slow* (it is checked).

        The host's model leaves the GPU first, as the settings say, and comes back whatever
        happens to the run.
        """
        values, problems = self._settle(values, presets)
        for problem in problems:
            raise UserError(problem.message)
        return self._runs.start(values, name, self._presets.shipped(presets))

    def _settle(self, values: Values, presets: Sequence[str]) -> tuple[Values, list[types.Problem]]:
        """The user's presets and values in one, their paths checked alike; the memory that is free
        is the host's to say, since its own model will leave."""
        own: Values = {}
        for name in presets:
            own |= self._presets.values(name) if self._presets.is_own(name) else {}
        values = own | renamed(TrainConfig, values)
        named = any(map(budget_of, presets))
        if not named and values.get("memory.budget", "auto") == "auto":
            free = self.memory_choice().budget
            values |= {"memory.budget": free} if free else {}
        values, problems = self.paths.settle(values)
        if problems:
            return values, problems
        # Found in the host's own folders: what nobody named, of a base in several files.
        parts = self._bases.parts(str(values.get("base.model") or ""), self.paths)
        return {**parts, **{k: v for k, v in values.items() if v or k not in parts}}, problems

    def status(self, run: str) -> types.Status:
        """What state a run is in."""
        return self._runs.status(run)

    def events(self, run: str, offset: int = 0) -> types.Events:
        """What happened since ``offset``, and the present state."""
        return self._runs.events(run, offset)

    def verbs(self) -> dict[str, str]:
        """What a run can be asked, and what it means."""
        return {**VERBS, "kill": "end the process, whatever it is doing; what was saved stays"}

    def command(self, run: str, verb: str) -> None:
        """Asks a run for one of :meth:`verbs`."""
        self._runs.command(run, verb)

    def runs(self) -> list[types.Status]:
        """All runs, the latest first; what is live before what has ended."""
        return self._runs.all()

    def live_run(self) -> str:
        """The run that the page attaches to when it opens: at work, else the last; or empty."""
        return self._runs.live()

    def run_values(self, run: str) -> Values:
        """The configuration of a run, to start another like it. *Slow*."""
        return self._runs.values(run)

    def resume(self, run: str) -> None:
        """Resumes a run from its last checkpoint."""
        self._runs.resume(run)

    def delete(self, run: str) -> None:
        """Deletes a run's folder. What was published of it stays."""
        self._runs.delete(run)

    def marks(self, run: str) -> list[types.Marked]:
        """The images that a run has made, with their marks."""
        return self._runs.marks(run)

    def mark(self, run: str, image: str, mark: str) -> None:
        """Calls an image ``good`` or ``bad``; an empty mark takes that back.

        Args:
            image: its name among :meth:`marks`.
        """
        mark_run(self._runs.folder(run), {image: mark})

    def going_on(self, run: str) -> Values:
        """The configuration of a run that goes on from here: from a run's adapter, with the images
        of it that are marked."""
        return self._runs.going_on(run)

    def evaluate(self, run: str, **asked: Any) -> str:
        """Starts judging what a run learned, as ``dreambooth evaluate`` does; returns the id of its
        task.

        Args:
            run: its name.
            asked: ``kind``, ``saves`` and ``download``, as the command has them.
        """
        folder = self._runs.folder(run).path
        for other in self._runs.all():
            if other.state == "running":
                raise UserError("a run is at work, and images need its memory", where=other.name)
        return self._tools.begin("evaluate", {"runs": [str(folder)], **asked})

    def evaluation(self, run: str) -> Path:
        """The page that :meth:`evaluate` wrote.

        Raises:
            UserError: there is none.
        """
        found = self._runs.judged(run)
        if found is None:
            raise UserError("this run was not evaluated yet", where=run)
        return found

    # -- results --------------------------------------------------------------------------------

    def saved(self, run: str) -> list[types.Saved]:
        """What a run has saved that a host can load, the first step first."""
        return self._results.saved(self._runs.folder(run))

    def publish(self, run: str, step: int | None = None) -> types.Published:
        """Puts a saved step (by default the last) where the host lists it, with preview and
        trigger words. Under the name that it has if it is there already."""
        return self._results.publish(self._runs.folder(run), step)

    def published(self, run: str) -> list[types.Published]:
        """What of a run is where the host lists it."""
        return self._results.published(self._runs.folder(run))

    def prompt_for(self, name: str) -> str:
        """What to put into the prompt for an adapter of the Lora tab: ``sks dog <lora:dog:1>``."""
        return self._results.prompt_for(name)

    def select_checkpoint(self, name: str) -> None:
        """Makes the host generate with a checkpoint, by its name or path. *Slow*."""
        self.host.select_checkpoint(Path(self._bases.named(name).path))

    # -- adapters and models ----------------------------------------------------------------------

    def adapters(self) -> list[types.Base]:
        """The files in the Lora folder."""
        return self._tools.adapters()

    def tools(self) -> dict[str, list[types.ToolOption]]:
        """``inspect``, ``merge``, ``bake``, ``extract``, ``convert``, ``resize`` and what each
        takes, from the command line's own description."""
        return self._tools.all()

    def inspect(self, file: str) -> dict[str, Any]:
        """What a model file is, as ``dreambooth inspect --json`` tells it. *Slow* at first."""
        return self._tools.inspect(self.paths.read(file, "any", "the file"))

    def run_tool(self, tool: str, values: Mapping[str, Any]) -> str:
        """Starts a tool; returns the id of its task.

        Args:
            tool: one of :meth:`tools`.
            values: by the names of its options. Files are paths, or names in the Lora folder or
                among the checkpoints. An output without a folder goes to where the host lists
                it: adapters to the Lora folder, models to the checkpoints; an existing file is
                never overwritten, the name gets a number.
        """
        return self._tools.start(tool, values, self.paths)

    def task(self, number: str) -> types.Task:
        """How a task is doing."""
        return self._tools.task(number)

    def tasks(self) -> list[types.Task]:
        """The tasks of this process, the latest first."""
        return self._tools.tasks()

    def cancel(self, number: str) -> None:
        """Ends a task; nothing half-written is left."""
        self._tools.cancel(number)

    # -- the host's side --------------------------------------------------------------------------

    def attach(self) -> None:
        """Takes up what goes on already: after a start of the host, or Reload UI.

        Watches live runs (and takes the host's model off the GPU for them), and publishes what
        finished meanwhile.
        """
        self._runs.attach()
