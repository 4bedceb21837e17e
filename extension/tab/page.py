"""The tab as a whole: its areas, and what connects them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from dreambooth_core.config.loading import mark
from dreambooth_core.errors import DreamBoothError
from dreambooth_core.options import TrainConfig

from .base import BaseArea
from .common import Fresh, failure, hidden_button, hidden_text, told
from .compat import Component, make, on, open_page, update
from .form import Form
from .generate import GenerateArea
from .html import note
from .keeping import Keeping
from .live import Watcher
from .marks import MarksArea
from .method import APART, Layer, MethodArea
from .runs import RunsPage
from .setup import Setup
from .subject import Subjects
from .tasks import task_list
from .tools import ToolsPage
from .train import TrainArea
from .values import Wrong


class Page:
    """Draws everything inside the current gradio blocks."""

    def __init__(self, studio: Any) -> None:
        self.studio = studio
        description = studio.schema()
        self.form = Form(description, apart=APART)
        ready = studio.setup.state().ready
        open_page()
        with gr.Column(elem_id="dreambooth_tab"):
            self.setup = Setup(studio, visible=not ready)
            self.main = gr.Column(visible=ready, elem_id="dreambooth_main")
            with self.main, make("Tabs", elem_id="dreambooth_pages"):
                with gr.TabItem("Train", id="train"):
                    self._train_page(description)
                self.tools = ToolsPage(studio)
                with gr.TabItem("Adapters", id="adapters"):
                    self.tools.adapters()
                with gr.TabItem("Models", id="models"):
                    self.tools.models()
                with gr.TabItem("Runs", id="runs"):
                    self.runs = RunsPage(studio)
            self.open = hidden_button("dreambooth_open")
            self.tick = hidden_button("dreambooth_tick")
            self.beat = hidden_text("dreambooth_beat")
            self.cancelled = hidden_text("dreambooth_cancel")
            self.keeping = self._keeping()
        self.seen: Component = gr.State({})
        self._wire()

    def _train_page(self, description: dict[str, Any]) -> None:
        with gr.Row(elem_id="dreambooth_columns"):
            with gr.Column(scale=11, min_width=420, elem_id="dreambooth_left"):
                self.subjects = Subjects(self.studio, self.form, description)
                self.base = BaseArea(self.studio, self.form)
                self.method = MethodArea(self.studio, self.form)
            with gr.Column(scale=10, min_width=420, elem_id="dreambooth_right"):
                labels = {key: str(spec["label"]) for key, spec in self.form.specs.items()}
                labels |= self.subjects.labels
                self.train = TrainArea(self.studio, Watcher(self.studio.runs), labels)
                self.generate = GenerateArea(self.studio, self.train.run)
                self.marks = MarksArea(self.studio, self.train.run)

    def _keeping(self) -> Keeping:
        """What loading the page again must not lose."""
        kept = {
            "layer": self.method.layer,
            "preset": self.method.recipe,
            "kind": self.subjects.kind,
            "name": self.train.name,
            **self.subjects.controls(),
            **self.form.controls,
        }
        return Keeping(kept, {"base": self.base.choice, "subjects": self.subjects.count})

    def _wire(self) -> None:
        self.method.wire()
        self._wire_presets()
        subjects = self.subjects.inputs()
        inputs = [
            self.method.layer,
            self.base.choice,
            *subjects,
            *self.form.inputs(),
        ]

        def read(given: Sequence[Any]) -> tuple[dict[str, Any], list[str], list[Wrong]]:
            written, base, *rest = given
            layer = Layer.read(written)
            values, wrong = self.subjects.read(rest[: len(subjects)])
            more, wrong_too = self.form.read(rest[len(subjects) :], layer.values)
            values.update(more)
            values["base.model"] = self.base.path(base)
            marked = [Wrong(key, "", line) for key, line in mark(TrainConfig, values).items()]
            return values, layer.names, [*wrong, *wrong_too, *marked]

        self.train.wire(inputs, read)
        self._wire_runs(subjects)
        known = [self.seen, self.train.run, self.train.pinned]
        on(self.tick.click, self.look, known, self._watched(), quiet=True)
        cancelling = [self.cancelled]
        on(self.cancelled.change, self._cancel, cancelling, [self.train.said], quiet=True)

    def _wire_presets(self) -> None:
        """Base, kind and method choose presets; presets fill the form."""
        method, base = self.method, self.base
        kind = self.form.controls["method.kind"]
        lists = [method.recipe]
        asked = [self.subjects.kind, base.family, *lists, method.layer, *self.form.inputs()]
        naming = [base.family, kind, *lists]

        def follow(event: Any) -> None:
            on(event, method.follow, asked, method.outputs(), quiet=True)

        for event in (self.subjects.kind.input, method.recipe.input):
            follow(event)
        named = on(kind.input, method.names, naming, lists, quiet=True)
        follow(named.then)
        # The page opens: what was in it before, and the list of bases; the choice then changes, and
        # what follows from it.
        shown = [base.choice, *self.subjects.shown(), *self.keeping.controls.values()]
        written = [base.choice, self.keeping.text]
        opened = on(self.open.click, self._opened, written, shown, quiet=True)
        self.subjects.look_after(opened)
        told_base = [base.about, base.family]
        known = on(base.choice.change, base.describe, [base.choice], told_base, quiet=True)
        follow(on(known.then, method.names, naming, lists, quiet=True).then)
        on(self.open.click, self.tools.lists, [], self.tools.files(), quiet=True)

    def _wire_runs(self, subjects: list[Component]) -> None:
        """A run of the history is shown, or its settings are used again."""
        runs = self.runs
        to_train = "(name) => { dreambooth.page(0); return [name]; }"
        shown = [self.train.run, self.train.pinned]
        on(runs.show.click, lambda name: [name, name], [runs.chosen], shown, js=to_train)
        form = [*subjects, self.base.choice, *self.form.inputs()]
        again, go_on = runs.settings.click, self.marks.go_on.click
        asked = self.studio.runs
        again = on(again, self._fill(asked.values), [runs.chosen], [*form, runs.said])
        self.keeping.after(again.then)
        going_on = on(go_on, self._fill(asked.going_on), [self.train.run], [*form, self.marks.said])
        self.keeping.after(going_on.then)

    def _opened(self, chosen: str | None, written: str) -> list[Any]:
        """The page as it was before it was loaded again, and the list of bases."""
        before = self.keeping.read(written)
        return [
            self.base.names(before.get("base") or chosen),
            *self.subjects.show(before.get("subjects", 1)),
            *self.keeping.updates(before),
        ]

    def _fill(self, ask: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        """Fills the form with what the studio answers to a question about a run."""

        def fill(run: str) -> list[Any]:
            try:
                flat = ask(run)
            except DreamBoothError as error:
                count = len(self.subjects.inputs()) + 1 + len(self.form.inputs())
                return [*(update() for _ in range(count)), failure(error)]
            names = {base.path: base.name for base in self.studio.bases.all()}
            model = str(flat.get("base.model", ""))
            return [
                *self.subjects.fill(flat),
                update(value=names.get(model, model)),
                *self.form.updates(self.form.as_shown(flat)),
                note("good", "Its settings are on the Train page."),
            ]

        return fill

    def look(self, seen: dict[str, Any] | None, run: str, pinned: str) -> list[Any]:
        """All that may have changed since the page's script pressed the button last."""
        fresh = Fresh(seen)
        environment = self.studio.setup.state()
        setup = [
            fresh.visible("setup", not environment.ready),
            fresh.visible("main", environment.ready),
            fresh.value("setup state", "" if environment.ready else self.setup.told()),
            fresh.visible("setup begin", not environment.building),
            fresh.visible("setup cancel", environment.building),
        ]
        train = self.train.look(run, pinned, fresh)
        results = [*self.generate.look(train[0], fresh), *self.marks.look(train[0], fresh)]
        runs = self.runs.look(fresh)
        tasks = task_list(self.studio.tools.tasks())
        shown = [fresh.value(f"tasks {n}", tasks) for n, _ in enumerate(self.tools.tasks)]
        return [fresh.seen, str(time.time()), *setup, *train, *results, *runs, *shown]

    def _watched(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [
            self.seen,
            self.beat,
            self.setup.page,
            self.main,
            self.setup.state,
            self.setup.begin,
            self.setup.cancel,
            *self.train.outputs(),
            *self.generate.outputs(),
            *self.marks.outputs(),
            *self.runs.outputs(),
            *self.tools.tasks,
        ]

    def _cancel(self, task: str) -> Any:
        return told(self.studio.tools.cancel, task) if task else update()


def tab(studio: Any) -> list[tuple[Any, str, str]]:
    """The tab as the host expects it: (blocks, title, element id)."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        Page(studio)
    return [(blocks, "DreamBooth", "dreambooth")]
