"""HTML of the tab's live parts. Every text is escaped; only what is built here is markup.

Words and numbers stand in elements of their own: the WebUI translates whole texts, and could
not find "12 taken" in any list of translations.
"""

from __future__ import annotations

import base64
import html
import stat
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from dreambooth_core.data.crops import crop_of


class Html(str):
    """Markup that is safe to show as it is."""

    __slots__ = ()


def text(value: object) -> Html:
    """Any value as text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def join(parts: object) -> Html:
    """Several pieces, one after the other; None and empty ones are left out."""
    assert isinstance(parts, (list, tuple))
    return Html("".join(text(part) for part in parts if part is not None and part != ""))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """``tag("b", "a < b", cls="db-x", data_step=3)``; attributes that are None are left out."""
    written = []
    for key, value in attributes.items():
        if value is None:
            continue
        label = "class" if key == "cls" else key.replace("_", "-")
        written.append(f' {label}="{html.escape(str(value))}"')
    return Html(f"<{name}{''.join(written)}>{join(list(children))}</{name}>")


def div(cls: str, *children: object, **attributes: object) -> Html:
    """A block."""
    return tag("div", *children, cls=cls, **attributes)


def span(cls: str, *children: object, **attributes: object) -> Html:
    """A piece of a line."""
    return tag("span", *children, cls=cls, **attributes)


def chip(state: str, word: str | None = None) -> Html:
    """A word in a coloured pill; the colour is that of ``state``."""
    return span(f"db-chip db-is-{state}", word or state)


def path_name(path: object) -> Html:
    """A file by its name; the whole path is told on pointing at it."""
    whole = str(path or "")
    name = whole.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return span("", name, title=whole if name != whole else None)


def note(kind: str, *children: object) -> Html:
    """A line that stands out: ``good``, ``info``, ``warning`` or ``wrong``."""
    return div(f"db-note db-note-{kind}", *children)


def facts(pairs: list[tuple[str, object]]) -> Html:
    """Names and values in two columns."""
    rows = [
        join([tag("dt", name), tag("dd", value)])
        for name, value in pairs
        if value not in ("", None)
    ]
    return tag("dl", *rows, cls="db-facts")


def tiles(pairs: list[tuple[str, object, str]]) -> Html:
    """Large values with small names and units below each other."""
    return div(
        "db-tiles",
        *(
            div(
                "db-tile",
                div("db-tile-value", value, span("db-unit", unit)),
                div("db-tile-name", name),
            )
            for name, value, unit in pairs
        ),
    )


def bar(share: float, *, busy: bool = False) -> Html:
    """A progress bar filled to ``share`` of 1."""
    width = f"width:{100 * min(max(share, 0.0), 1.0):.2f}%"
    return div("db-bar db-busy" if busy else "db-bar", div("db-bar-fill", style=width))


Sides = Sequence[float]
"""Left, top, right and bottom of a part of an image, as shares of its width and height."""


def picture(
    path: str | Path,
    *,
    side: int = 160,
    caption: object = "",
    title: str = "",
    crop: Sides | None = None,
    **attributes: object,
) -> Html:
    """A figure with a small image that needs no route of its own, so no host can refuse it."""
    source = thumbnail(str(path), side, crop)
    image = Html(f'<img src="{source}" alt="" loading="lazy">') if source else div("db-no-picture")
    words = tag("figcaption", caption) if caption != "" else ""
    return tag("figure", image, words, title=title or None, **attributes)


def thumbnail(path: str, side: int, crop: Sides | None = None) -> str:
    """An image, or a part of it, as a ``data:`` address, at most ``side`` pixels wide and high;
    empty if broken."""
    try:
        facts = Path(path).stat()
    except OSError:
        return ""
    if not stat.S_ISREG(facts.st_mode):
        return ""  # a pipe would be waited for
    part = tuple(crop) if crop is not None else None
    return _thumbnail(path, side, part, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=1024)
def _thumbnail(
    path: str, side: int, crop: tuple[float, ...] | None, changed: int, size: int
) -> str:
    from PIL import Image, ImageOps

    from dreambooth_core.data.decode import encode

    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * side, 2 * side))
            image = ImageOps.exif_transpose(opened)
            if crop is not None:
                image = image.crop(crop_of(crop).box(*image.size))
            small = max(image.size) <= side
            if small:  # pixels of tiny images stay sharp
                factor = max(1, side // max(image.size))
                size_now = (image.width * factor, image.height * factor)
                image = image.convert("RGB").resize(size_now, Image.Resampling.NEAREST)
            else:
                image = image.convert("RGB")
                image.thumbnail((side, side), Image.Resampling.LANCZOS)
            kept = encode(image, "JPEG", quality=85)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(kept).decode()


def duration(seconds: float | None) -> str:
    """Seconds as people say them: ``1:05:09``, ``4:20``; a dash for unknown."""
    if seconds is None or seconds < 0 or seconds != seconds or seconds == float("inf"):
        return "–"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{last:02}" if hours else f"{minutes}:{last:02}"


def size(count: float | None) -> str:
    """Bytes as people say them: ``1.5 GB``; a dash for unknown."""
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"
