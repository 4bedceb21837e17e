"""Runs that were: as a table, one by one, and side by side. No gradio in here."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from .html import Html, bar, chip, div, duration, join, note, path_name, picture, span, tag
from .live import STATES

COLUMNS = ("Run", "State", "Steps", "Loss", "Time", "Method", "Base", "Last heard of")
MOST_COLUMNS = 6
"""Steps in a row of the grid."""
MOST_MARKED = 48
"""Images to be marked, the latest ones."""
NEXT = {"": "good", "good": "bad", "bad": ""}
"""What a click makes of a mark."""


def table(found: Sequence[Any]) -> Html:
    """Runs as rows; a click on a name chooses it."""
    if not found:
        return div("db-muted", "No runs yet.")
    head = tag("tr", *(tag("th", name) for name in COLUMNS))
    live = any(each.live for each in found)
    return tag("table", head, *map(_row, found), cls="db-table", data_live="1" if live else "0")


def _row(run: Any) -> Html:
    steps = f"{run.step} / {run.steps}" if run.steps else ""
    end = run.ended or run.updated
    lasted = duration(end - run.started) if run.started and end else ""
    cells = (
        tag("button", run.name, cls="db-link", data_choose=run.name),
        chip(run.state, STATES.get(run.state)),
        join([steps, bar(run.step / run.steps, busy=run.live) if run.steps else ""]),
        f"{run.loss:.4f}" if run.loss is not None else "",
        lasted,
        run.method,
        path_name(run.base),
        _when(run.updated or run.created),
    )
    return tag("tr", *(tag("td", cell) for cell in cells))


def about(run: Any) -> Html:
    """What else is known of a run: messages, results, the latest images."""
    names = [span("db-code", name) for name in run.published]
    figures = [picture(path, side=160) for path in run.samples[-6:]]
    return div(
        "db-run",
        div("db-head", span("db-run-name", run.name), chip(run.state, STATES.get(run.state))),
        div("db-muted", run.path),
        note("wrong" if run.state in ("failed", "lost") else "info", run.message)
        if run.message
        else "",
        div("db-files", *names) if names else "",
        div("db-pictures", *figures) if figures else "",
    )


def evaluation(page: str) -> Html:
    """An evaluation's page; nothing in it is run, whoever wrote it."""
    return tag("iframe", srcdoc=page, sandbox="", cls="db-evaluation")


def grid(found: Sequence[tuple[str, Sequence[str]]]) -> Html:
    """A row for each run, a column for each of some steps: those that all runs have, if any."""
    runs = [(name, _by_step(samples)) for name, samples in found]
    common = set(runs[0][1]).intersection(*(steps for _, steps in runs)) if runs else set()
    rows = []
    for name, by_step in runs:
        chosen = _spread(sorted(common or by_step), MOST_COLUMNS)
        cells = [tag("td", picture(by_step[n], side=192, caption=n)) for n in chosen]
        rows.append(tag("tr", tag("th", name), *(cells or [tag("td", "No samples")])))
    if not rows:
        return note("info", "Choose runs first.")
    return div("db-scroll", tag("table", *rows, cls="db-grid-table"))


def marked(found: Sequence[Any]) -> Html:
    """The latest images with their marks; each says what a click makes of it."""
    figures = [
        picture(
            one.path,
            side=160,
            caption=one.mark or "–",
            title=one.prompt,
            data_mark=json.dumps([one.image, NEXT.get(one.mark, "")]),
            data_marked=one.mark or "nothing",
        )
        for one in found[-MOST_MARKED:]
    ]
    good, bad = (sum(one.mark == kind for one in found) for kind in ("good", "bad"))
    return div(
        "db-marks",
        div(
            "db-counts",
            span("db-count db-good", good),
            span("", "good"),
            span("db-count", bad),
            span("", "bad"),
        ),
        div("db-pictures", *figures),
    )


def _by_step(samples: Sequence[str]) -> dict[int, str]:
    """The first image of each step, as their names tell: ``step-000120-00.png``."""
    found: dict[int, str] = {}
    for path in samples:
        numbers = re.findall(r"\d+", PurePath(path).name)
        if numbers:
            found.setdefault(int(numbers[0]), path)
    return found


def _spread(steps: list[int], most: int) -> list[int]:
    """At most so many, as evenly spaced as they come; the first and the last among them."""
    if len(steps) <= most:
        return steps
    return [steps[round(n * (len(steps) - 1) / (most - 1))] for n in range(most)]


def _when(moment: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment)) if moment else ""
