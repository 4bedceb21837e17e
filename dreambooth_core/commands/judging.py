"""Judges runs: their results draw what the protocol asks, and so does the base beside them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from dreambooth_core.bases.locate import is_commit, locate
from dreambooth_core.config.loading import load
from dreambooth_core.data.concepts import gather
from dreambooth_core.data.images import load_rgb
from dreambooth_core.devices import choose_device
from dreambooth_core.disk.system import make_folder, save_failed
from dreambooth_core.errors import UserError
from dreambooth_core.evaluation.encoders import load_encoders, own_folder
from dreambooth_core.evaluation.grid import Row, sheet
from dreambooth_core.evaluation.measures import measure
from dreambooth_core.evaluation.page import WORDS, Judged, page
from dreambooth_core.evaluation.protocol import Task, prompts_for, read_prompts, tasks
from dreambooth_core.families.components import Components
from dreambooth_core.families.host_files.read import put_denoiser
from dreambooth_core.families.loading import load_base, pinned
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.sampling import SamplingSettings, generate
from dreambooth_core.families.tokens import add_token
from dreambooth_core.formats.adapters.apply import AdapterStack
from dreambooth_core.formats.adapters.read import read_adapter
from dreambooth_core.formats.embeddings import read_embedding
from dreambooth_core.jobs import RunFolder, read_made
from dreambooth_core.methods.table import METHODS
from dreambooth_core.options import TrainConfig
from dreambooth_core.trainer.best import Record

if TYPE_CHECKING:
    from dreambooth_core.commands.evaluate import Options

MOST_REAL = 50
"""Real images that are compared with."""


@dataclass
class Contest:
    """What was judged, beside each other."""

    facts: dict[str, str]
    real: list[Image.Image]
    tasks: list[Task]
    models: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def page(self) -> str:
        """The HTML page."""
        return page(
            "How well it was learned", self.facts, self.real, self.tasks, self.models, self.notes
        )

    def grid(self) -> Image.Image:
        """A sheet of the first image of each prompt, the models beside each other."""
        first: dict[str, int] = {}
        for place, task in enumerate(self.tasks):
            first.setdefault(task.prompt, place)
        rows = [
            Row("\n".join(wrap(prompt, 26)), [model.images[place] for model in self.models])
            for prompt, place in first.items()
        ]
        return sheet(rows, columns=[model.label for model in self.models])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, images left out."""
        return {
            "facts": self.facts,
            "notes": self.notes,
            "names": {name: word for name, (word, _) in WORDS.items()},
            "models": [
                {
                    "label": model.label,
                    "step": model.step,
                    "best": model.best,
                    "held_out_loss": model.held_out_loss,
                    "measures": {n: asdict(m) for n, m in model.measures.items()},
                }
                for model in self.models
            ],
        }


@dataclass(frozen=True)
class Entrant:
    """One result of a run, or its base."""

    label: str
    step: int | None
    """None: of the base."""
    file: Path


class JudgedRun:
    """A run with a result, and what of it is judged.

    Raises:
        UserError: there is no such run, or it has no result yet.
    """

    def __init__(self, path: Path, *, saves: bool) -> None:
        self.folder = RunFolder.open(path)
        self.config = load(TrainConfig, files=[self.folder.config])
        self.made = read_made(self.folder)
        name, last = self.folder.name, self.made.steps
        self.entrants = [Entrant(name, last, self.made.file)]
        if saves and self.made.embedding is None:
            self.entrants = [*self._saved(last), *self.entrants]
        self.record = Record.of(list(self.folder.events), last)

    def _saved(self, last: int) -> Iterator[Entrant]:
        stepped = re.compile(rf"{re.escape(self.folder.name)}-(\d{{6,}})(\.safetensors)?")
        found = {
            int(match[1]): path
            for path in sorted(self.folder.path.iterdir())
            if (match := stepped.fullmatch(path.name))
        }
        for step, path in sorted(found.items()):
            if step < last:
                yield Entrant(f"{self.folder.name}, step {step}", step, path)

    @property
    def base(self) -> BaseOptions:
        """The base, of the commit that the run read."""
        commit = self.made.commit
        return pinned(self.config.base, commit if is_commit(commit) else None)

    @contextmanager
    def applied(self, parts: Components, entrant: Entrant) -> Iterator[Components]:
        """Inside, a base with that result."""
        if METHODS[self.config.method.kind].trains_base:  # the result is a whole model
            folder = entrant.file.with_suffix("")
            if folder.is_dir() or parts.family.files is None:
                model = folder if folder.is_dir() else entrant.file
                whole = load_base(replace(self.base, model=str(model), revision=None, variant=None))
            else:  # the denoiser alone, as hosts keep it
                whole = load_base(self.base)
                put_denoiser(whole, entrant.file)
            yield _on(whole, next(parts.denoiser.parameters()).device)
            return
        stack = AdapterStack(parts.models)
        embedding = self.made.embedding
        if embedding is not None:
            add_token(parts, self.made.token, read_embedding(str(embedding)).rows)
        if embedding != self.made.file:
            stack.load(entrant.label, read_adapter(entrant.file))
        try:
            yield parts
        finally:
            stack.clear()


def evaluate(args: Options, folder: Path, tell: Callable[[str], None] | None = None) -> Contest:
    """Draws and judges what the runs have learned, and their base.

    Args:
        args: what the command takes. Prompts, real images and base are the first run's.
        folder: where the report will lie; it is made before anything is drawn.
        tell: is told what is being done.

    Raises:
        UserError: a run has no result, or there is nothing to compare.
        SaveFailed: the folder cannot be made.
    """
    started = time.monotonic()
    tell = tell or (lambda what: None)
    runs = [JudgedRun(Path(path), saves=args.saves) for path in args.runs]
    first, device = runs[0], choose_device(args.device)
    for other in runs[1:]:
        if other.config.base.model != first.config.base.model:
            raise UserError(
                "runs on different bases cannot stand beside each other",
                where=other.folder.path,
                do="Judge them one by one.",
            )
    config = first.config
    concept = gather(config.concepts, config.data, config.prior, seeks_best=config.seeks_best)[0]
    held = concept.of_held_out() if concept.held_out else concept
    background = config.data.background
    real = [_square(load_rgb(one, background)) for one in held.images[:MOST_REAL]]
    place = locate(first.base.model, revision=first.base.revision, variant=first.base.variant)
    about = concept.options
    prompts = (
        read_prompts(args.prompts) if args.prompts else prompts_for(args.kind, own_folder(place))
    )
    wanted = tasks(prompts, about.instance_prompt, about.class_prompt, args.images, args.seed)
    contest = Contest({}, real, wanted)
    encoders = None
    try:  # before any image is drawn; on the device after all are
        encoders = load_encoders(
            place, choose_device("cpu"), clip=args.clip, dino=args.dino, download=args.download
        )
    except UserError as error:
        if args.clip or args.dino:
            raise
        contest.notes.append(f"{error.line} Only the held-out loss is told.")
    parts = _on(load_base(first.base), device)
    settings = _settings(args, config, parts)
    drawn: list[tuple[Entrant, Record, list[Image.Image]]] = []
    try:
        make_folder(folder)
    except OSError as error:
        raise save_failed(folder, error) from error
    tell(f"drawing {len(wanted)} images with the base")
    drawn.append((Entrant("base", None, Path()), Record(), _draw(parts, wanted, settings)))
    for one in runs:
        for entrant in one.entrants:
            tell(f"drawing {len(wanted)} images with {entrant.label}")
            with one.applied(parts, entrant) as trained:
                drawn.append((entrant, one.record, _draw(trained, wanted, settings)))
    _on(parts, choose_device("cpu"))
    if encoders is not None:
        encoders.to(device)
    if not about.class_prompt:
        contest.notes.append(
            "The run has no class prompt: preservation and diversity are left out."
        )
    style = args.kind == "style"
    for entrant, record, images in drawn:
        measures = measure(encoders, wanted, images, real, style=style) if encoders else {}
        step = entrant.step
        loss = None if step is None else record.losses.get(step)
        best = record.best == step and loss is not None
        contest.models.append(Judged(entrant.label, measures, images, loss, best=best, step=step))
    contest.facts |= {
        "subject": about.instance_prompt,
        "class": about.class_prompt,
        "prompts": f"{len(prompts)}, {args.images} images each, seeds from {args.seed}",
        "real images": f"{len(real)}, "
        + ("none of them trained on" if concept.held_out else "all of them trained on"),
        "images": f"{settings.steps} steps, guidance {settings.guidance:g}, {settings.scheduler}",
        "seconds": f"{time.monotonic() - started:.0f}",
    }
    return contest


def _settings(args: Options, config: TrainConfig, parts: Components) -> SamplingSettings:
    side = config.validation.size or config.data.resolution or parts.native_size
    usual = parts.recommended
    return SamplingSettings(
        steps=args.steps or int(usual.get("steps", 25)),
        guidance=float(usual.get("guidance", 7.0)) if args.guidance is None else args.guidance,
        scheduler=config.validation.scheduler,
        width=side,
        height=side,
        batch_size=args.batch_size,
    )


def _draw(
    parts: Components, wanted: Sequence[Task], settings: SamplingSettings
) -> list[Image.Image]:
    return generate(
        parts, [task.prompt for task in wanted], [task.seed for task in wanted], settings
    )


def _on(parts: Components, device: Any) -> Components:
    for model in parts.networks:
        model.to(device)
    return parts


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    return ImageOps.fit(image, (side, side))
