"""The tools' words, what they found, and how they are doing. No gradio in here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .html import Html, bar, chip, div, facts, join, note, span, tag

TITLES = {
    "merge": ("Merge", "Add up adapters, each with a weight of its own."),
    "bake": ("Bake", "Write adapters into a checkpoint."),
    "extract": ("Extract", "Get an adapter out of a base and a model trained from it."),
    "resize": ("Resize", "Change an adapter's rank."),
    "convert": ("Convert", "From one format into another, both ways."),
    "caption": ("Captions", "What each image shows, by a model."),
    "evaluate": ("Evaluate", "How well a run learned its subject."),
}
PLACE = "A name alone puts it where the WebUI lists adapters."
HELP = {"what to write": PLACE, "the adapter to write": PLACE, "what to write: plain LoRA": PLACE}
"""Help in place of the command line's, where this page does more."""

MOST_TASKS = 5
FEW = 6
"""Lines that are shown without being unfolded."""


def inspected(found: dict[str, Any]) -> Html:
    """What a model file is, as far as it is plain."""
    rows: list[tuple[str, object]] = []
    for name, value in found.items():
        if isinstance(value, (str, int, float)) and value != "":
            rows.append((_words(name), value))
        elif name == "hosts" and value:
            told = [div("", f"{each['host']}: {each['text']}") for each in value]
            rows.append((_words(name), join(told)))
        elif isinstance(value, list) and value and all(isinstance(v, (str, int)) for v in value):
            rows.append((_words(name), ", ".join(map(str, value[:40]))))
        elif isinstance(value, dict) and value:
            plain = [f"{key}: {each}" for key, each in value.items() if not isinstance(each, dict)]
            lines = join([div("", line) for line in plain])
            many = tag("details", tag("summary", len(plain)), lines, cls="db-skipped")
            rows.append((_words(name), many if len(plain) > FEW else lines))
    return facts(rows)


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def task_list(tasks: Sequence[Any]) -> Html:
    """The latest tasks: how they do, what they wrote."""
    if not tasks:
        return div("db-muted", "Nothing yet.")
    live = any(each.state in ("waiting", "running") for each in tasks)
    return div("db-tasks", *map(_task, tasks[:MOST_TASKS]), data_live="1" if live else "0")


def _task(task: Any) -> Html:
    working = task.state in ("waiting", "running")
    names = [span("db-code", Path(file).name, title=file) for file in task.files]
    kind = "wrong" if task.state == "failed" else "info"
    stop = tag("button", "Cancel", cls="db-link", data_cancel=task.id) if working else ""
    return div(
        "db-task",
        div(
            "db-head",
            span("db-run-name", TITLES.get(task.tool, (task.tool,))[0]),
            chip(task.state),
            stop,
        ),
        bar(task.progress if task.progress is not None else 0.0, busy=True) if working else "",
        div("db-files", *names) if names else "",
        note(kind, task.message) if task.message else "",
    )
