"""What would run: the report before anything starts. No gradio in here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .html import Html, div, duration, facts, join, note, path_name, size, span, tag
from .values import Wrong, in_words


def report(found: Any, labels: Mapping[str, str]) -> Html:
    """A service's ``Report`` for people; ``labels`` are the options' by key."""
    if found.problems:
        return problems([Wrong(each.key, "", each.message) for each in found.problems], labels)
    forecast = found.forecast or {}
    return div(
        "db-report",
        note("good", "Everything is in order."),
        facts(_rows(forecast, found.seconds)),
        *(note("warning", warning) for warning in forecast.get("warnings", ())),
        _skipped(forecast),
        _effective(found.effective, labels),
    )


def problems(found: list[Wrong], labels: Mapping[str, str]) -> Html:
    """What has to be mended first, in the page's words; its script marks the fields."""
    found = [
        Wrong(
            each.key,
            each.label or labels.get(each.key, ""),
            in_words(each.message, labels, each.key),
        )
        for each in found
    ]
    return join(
        [
            div(
                "db-note db-note-wrong",
                *((tag("b", each.label), " ") if each.label else ()),
                span("", each.message),
                data_field=each.key or None,
            )
            for each in found
        ]
    )


def _rows(forecast: Mapping[str, Any], seconds: float | None) -> list[tuple[str, object]]:
    concepts = forecast.get("data", {}).get("concepts", ())
    taken = sum(len(each["images"]["taken"]) for each in concepts)
    trainable = forecast.get("trainable", {})
    memory = forecast.get("memory") or {}
    classes = forecast.get("class_images", {})
    steps = forecast.get("steps")
    epoch = forecast.get("steps_per_epoch")
    buckets = forecast.get("data", {}).get("buckets", {})
    captions = [
        div("db-caption", each.get("text", "")) for each in forecast.get("captions", {}).values()
    ]
    return [
        ("Base", path_name(forecast.get("base"))),
        (
            "Family",
            join([forecast.get("family_label", ""), ", ", forecast.get("prediction_type", "")]),
        ),
        ("Images taken", taken),
        ("Sizes", ", ".join(f"{count} × {name}" for name, count in buckets.items())),
        ("Steps", f"{steps}" + (f"  ({epoch} / epoch)" if epoch else "")),
        ("Trained parameters", join([div("", f"{n:,}  {name}") for name, n in trainable.items()])),
        ("Memory needed", size(memory["peak"]) if memory.get("peak") else None),
        (
            "To fit into it",
            join([_measure(each) for each in memory.get("measures", ())])
            if memory.get("measures")
            else None,
        ),
        ("Time needed", _time(forecast, seconds)),
        ("Device", f"{forecast.get('device', '')}, {forecast.get('precision', '')}"),
        ("Captions", join(captions)),
        (
            "Class images to make",
            sum(each.get("missing", 0) for each in classes.values()) or None,
        ),
    ]


def _time(forecast: Mapping[str, Any], seconds: float | None) -> Html | str:
    """How long the steps take: what runs like it took, else what a GPU takes to compute them."""
    if seconds:
        return duration(seconds)
    each, steps = (forecast.get("memory") or {}).get("seconds"), forecast.get("steps")
    if each and steps and forecast.get("device", "").startswith("cuda"):
        least = duration(each * steps)
        return join([least, " ", span("db-muted", "at least, on a GPU such as an RTX 3060")])
    return span("", "Known once a run like it has made steps.")


def _measure(taken: Mapping[str, Any]) -> Html:
    """A setting that was changed to need less memory."""
    words = join([span("", taken["measure"]), f" ({size(taken['saves'])}) "])
    return div("", words, span("db-muted", taken["settings"]))


def _skipped(forecast: Mapping[str, Any]) -> Html | str:
    items = [
        tag("li", tag("b", one["name"]), " ", span("", one["reason"]))
        for concept in forecast.get("data", {}).get("concepts", ())
        for one in concept["images"]["skipped"]
    ]
    if not items:
        return ""
    return tag("details", tag("summary", "Skipped"), tag("ul", *items), cls="db-skipped")


def _effective(values: Mapping[str, Any], labels: Mapping[str, str]) -> Html | str:
    """Every value that would be in effect, folded away."""
    rows = [
        tag("tr", tag("td", labels.get(key, key)), tag("td", key, cls="db-key"), tag("td", value))
        for key, value in sorted(values.items())
    ]
    if not rows:
        return ""
    table = tag("table", *rows, cls="db-table")
    return tag("details", tag("summary", "Effective settings"), table, cls="db-skipped")
