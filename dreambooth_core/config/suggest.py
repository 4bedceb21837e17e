"""The word that a person probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The most similar of ``known``, whatever its case, dashes or underscores; None if none is.

    An abbreviation by first letters counts too.

    >>> nearest("Learning-rate", ["learning_rate", "steps"])
    'learning_rate'
    >>> nearest("lr", ["learning_rate", "steps"])
    'learning_rate'
    """
    by_form = {_form(each): each for each in reversed(list(known))}
    matches = get_close_matches(_form(word), list(by_form), n=1, cutoff=cutoff)
    if matches:
        return by_form[matches[0]]
    initials = {"".join(part[:1] for part in form.split("_")): form for form in by_form}
    found = initials.get(_form(word)) if len(word) > 1 else None
    return by_form[found] if found is not None else None


def advice(word: str, known: Iterable[str], *, most: int = 12) -> str:
    """A sentence for an error: the nearest of ``known``, or all of them if they are few."""
    names = list(known)
    near = nearest(word, names)
    if near is not None:
        return f"Did you mean {near}?"
    if not names:
        return ""
    shown = ", ".join(names[:most])
    return f"Known: {shown}{' …' if len(names) > most else ''}."


def _form(word: str) -> str:
    return word.casefold().replace("-", "_").replace(" ", "_")
