"""What training made, put to use: in txt2img, step by step, as the host's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from dreambooth_core.errors import DreamBoothError, UserError

from .common import Fresh, button, card, failure, heading, hidden_text, html
from .compat import Component, make, on, update
from .html import Html, chip, div, join, note, picture, span

TO_PROMPT = "(words) => { dreambooth.toPrompt(words); return []; }"


class GenerateArea:
    """The results of the run that is shown, also while it goes on."""

    def __init__(self, studio: Any, run: Component) -> None:
        self.studio, self.run = studio, run
        with card(elem_id="dreambooth_results_area", visible=False) as self.box:
            heading("5", "Generate", "Checkpoints can be tried during training.")
            self.step: Component = make(
                "Dropdown",
                label="Saved step",
                choices=[],
                value=None,
                elem_id="dreambooth_saved",
                info="The same prompt and seed at each.",
                interactive=True,
            )
            self.about: Component = html(elem_id="dreambooth_saved_about")
            with gr.Row(elem_classes=["db-actions"]):
                self.use = button(
                    "Use in txt2img",
                    elem_id="dreambooth_use",
                    kind="primary",
                    size="sm",
                    min_width=130,
                )
                self.list = button(
                    "List in the WebUI", elem_id="dreambooth_publish", size="sm", min_width=130
                )
                self.select = button(
                    "Select checkpoint", elem_id="dreambooth_select", size="sm", min_width=130
                )
            self.said: Component = html(elem_id="dreambooth_used")
            self.prompt: Component = hidden_text("dreambooth_prompt")
        here = [run, self.step]
        on(self.step.change, self._about, here, [self.about], quiet=True)
        used = on(self.use.click, self._use, here, [self.prompt, self.said])
        on(used.then, None, [self.prompt], [], js=TO_PROMPT)
        on(self.list.click, self._list, here, [self.said])
        on(self.select.click, self._select, here, [self.said])

    def look(self, run: str, fresh: Fresh) -> list[Any]:
        """Updates for :meth:`outputs`. Saved steps are looked for only when there are new ones."""
        try:
            status = self.studio.runs.status(run) if run else None
            key = (run, status.state, tuple(status.results)) if status else ("",)
            if fresh.seen.get("saved") == key:
                return [update() for _ in self.outputs()]
            saved = self.studio.saved(run) if status else []
        except DreamBoothError:
            status, key, saved = None, ("",), []
        fresh.seen["saved"] = key
        if not saved:
            return [update(visible=False), *(update() for _ in self.outputs()[1:])]
        steps = [str(one.step) for one in saved]
        listed = {"choices": steps, "visible": len(steps) > 1}
        select = update(visible=saved[-1].kind == "checkpoint")
        settled = fresh.seen.get("results of") == run and status and status.live
        fresh.seen["results of"] = run
        if settled:  # whoever looks at a step is not taken away from it by the next
            return [update(visible=True), update(**listed), update(), select]
        about = update(value=shown(saved[-1], len(saved), len(saved)))
        return [update(visible=True), update(value=steps[-1], **listed), about, select]

    def outputs(self) -> list[Component]:
        """What :meth:`look` updates."""
        return [self.box, self.step, self.about, self.select]

    def _saved(self, run: str, step: str | None) -> tuple[Any, int, int]:
        """The saved step that is chosen, else the last; its number, and how many there are."""
        saved = self.studio.saved(run)
        if not saved:
            raise UserError("this run has saved nothing yet", where=run)
        steps = [str(one.step) for one in saved]
        place = steps.index(step) if step in steps else len(steps) - 1
        return saved[place], place + 1, len(saved)

    def _about(self, run: str, step: str | None) -> Html:
        try:
            return shown(*self._saved(run, step))
        except DreamBoothError:
            return Html("")

    def _publish(self, run: str, step: str | None) -> Any:
        saved, _, _ = self._saved(run, step)
        return self.studio.publish(run, None if saved.final else saved.step)

    def _use(self, run: str, step: str | None) -> list[Any]:
        try:
            made = self._publish(run, step)
        except DreamBoothError as error:
            return ["", failure(error)]
        return [made.prompt, note("good", span("db-code", made.prompt))]

    def _list(self, run: str, step: str | None) -> Html:
        try:
            made = self._publish(run, step)
        except DreamBoothError as error:
            return failure(error)
        return note("good", span("", "Listed as"), " ", span("db-code", made.name))

    def _select(self, run: str, step: str | None) -> Html:
        try:
            made = self._publish(run, step)
            self.studio.select_checkpoint(made.path)
        except DreamBoothError as error:
            return failure(error)
        return note("good", span("", "The WebUI generates with"), " ", span("db-code", made.name))


def shown(saved: Any, number: int, count: int) -> Html:
    """One saved step: where it is, and the images made at it."""
    head = div(
        "db-saved",
        chip("step", f"{saved.step}"),
        span("db-muted", f"{number} / {count}"),
        span("", saved.kind),
        span("db-code", Path(saved.path).name),
    )
    figures = [picture(path, side=256) for path in saved.samples[:4]]
    return join([head, div("db-pictures db-large", *figures) if figures else ""])
