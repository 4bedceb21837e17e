"""Factors of an adapter's blocks, and of its strength over the sampling.

Blocks are called as the engine calls them (``up_blocks.1``), by their place in the file for what is
no UNet (``double_blocks.3``), or as LoRA Block Weight does: BASE is the text encoder, IN, MID and
OUT the UNet's blocks in the order of LDM, numbered; or by a list of numbers for all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from dreambooth_core.errors import UserError

MOST = 1000.0
ALL = "all"
SIDES = ("IN", "MID", "OUT")
PRESETS: dict[str, dict[str, float]] = {
    ALL: {},
    **{f"{one} only": {each: float(each == one) for each in SIDES} for one in SIDES},
    **{f"without {one}": {one: 0.0} for one in SIDES},
}

LISTS: dict[int, tuple[str, ...]] = {
    17: (
        "BASE",
        *(f"IN{n:02}" for n in (1, 2, 4, 5, 7, 8)),
        "MID",
        *(f"OUT{n:02}" for n in range(3, 12)),
    ),
    26: (
        "BASE",
        *(f"IN{n:02}" for n in range(12)),
        "MID",
        *(f"OUT{n:02}" for n in range(12)),
    ),
    12: (
        "BASE",
        *(f"IN{n:02}" for n in (4, 5, 7, 8)),
        "MID",
        *(f"OUT{n:02}" for n in range(6)),
    ),
    20: (
        "BASE",
        *(f"IN{n:02}" for n in range(9)),
        "MID",
        *(f"OUT{n:02}" for n in range(9)),
    ),
}
"""What the numbers of a list are for, by how many there are: Stable Diffusion 1's attention and all
of its blocks, and the same of SDXL."""
_NUMBERED = re.compile(r"(IN|OUT)(\d{1,2})")
_LDM = {"input": "IN", "output": "OUT"}
_PREFIXES = ("lora_unet_", "diffusion_model_", "transformer_", "unet_")


def read_factors(preset: str, text: str, where: str) -> dict[str, float]:
    """The factors of blocks by name, what is written over what the preset says.

    Args:
        preset: a name of :data:`PRESETS`.
        text: ``NAME=FACTOR`` on each line or after commas, or a list of numbers.
        where: node and widget, for errors.

    Raises:
        UserError: it is neither, or a number is none.
    """
    found = dict(PRESETS[preset])
    parts = [part.strip() for part in re.split(r"[,;\n]", text) if part.strip()]
    if parts and not any("=" in part for part in parts):
        names = LISTS.get(len(parts))
        if names is None:
            raise UserError(
                f"a list of {len(parts)} numbers is for no model",
                where=where,
                do="Write 17 or 26 for Stable Diffusion 1, 12 or 20 for SDXL, or NAME=FACTOR.",
            )
        parts = [f"{name}={part}" for name, part in zip(names, parts, strict=True)]
    for part in parts:
        name, equals, value = part.partition("=")
        named = _NUMBERED.fullmatch(name.strip().upper())
        key = f"{named[1]}{int(named[2]):02}" if named else name.strip().removeprefix("unet.")
        key = key.upper() if key.upper() in ("BASE", *SIDES) else key
        found[key] = _number(value if equals else "", part, where)
    return found


def read_schedule(text: str, where: str) -> list[tuple[float, float]]:
    """The strength's factors over the sampling: ``(share of it, factor from there on)``, sorted.

    Raises:
        UserError: it is no ``SHARE=FACTOR``, with shares from 0 to 1.
    """
    found: dict[float, float] = {}
    for part in (part.strip() for part in re.split(r"[,;\n]", text)):
        if part:
            share, _, value = part.partition("=")
            at = _number(share, part, where)
            if not 0 <= at <= 1:
                raise UserError(f"{at:g} is no share of the sampling", where=where, do=_SHARES)
            found[at] = _number(value, part, where)
    return sorted(({0.0: 1.0} | found).items()) if found else []


_SHARES = "Write from 0 (the first step) to 1 (the last): 0=0, 0.3=1."


def _number(text: str, part: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) <= MOST:
        raise UserError(f"{part!r} says no number", where=where, do="Write NAME=0.5.")
    return value


def by_factor(
    keys: Iterable[str], factors: Mapping[str, float], where: str
) -> dict[float, set[str]]:
    """A file's keys by the factor of their block; 1 where none is said.

    Raises:
        UserError: the file has nothing of a block that is named.
    """
    found: dict[float, set[str]] = {}
    used: set[str] = set()
    for key in keys:
        names = names_of(key)
        named = next((name for name in names if name in factors), None)
        used |= factors.keys() & set(names)
        found.setdefault(factors[named] if named else 1.0, set()).add(key)
    listed = {name for names in LISTS.values() for name in names} | {*SIDES}
    missing = [name for name in factors if name not in used and name not in listed]
    if missing or (factors and not used):
        there = sorted({_top(key) for key in keys})
        raise UserError(
            f"the adapter changes no block {(missing or [*factors])[0]}",
            where=where,
            do=f"It changes {', '.join(there)}.",
        )
    return found


def _top(key: str) -> str:
    """The first two parts of a key's place."""
    place = names_of(key)[0]
    return ".".join(place.split(".")[:2])


@lru_cache(8192)
def names_of(key: str) -> tuple[str, ...]:
    """All that a tensor's block is called by, the most specific first."""
    from dreambooth_core.families.names.unet import ldm_name, unet_path

    if key.startswith("lora_te"):
        number = "text_encoder_2" if key.startswith("lora_te2_") else "text_encoder"
        return (number, "BASE")
    module = key.partition(".")[0] if key.startswith("lora_") else key
    flat = module.replace(".", "_")
    for prefix in _PREFIXES:
        flat = flat.removeprefix(prefix)
    path = unet_path(flat)
    if path is None:
        return _ancestors(re.sub(r"_(\d+)_", r".\1.", flat))
    spot = re.match(r"(input|output)_blocks_(\d+)|(middle)_block", ldm_name(path, 2, ()) or "")
    if spot is None:
        return _ancestors(path)
    if spot[3]:
        return (*_ancestors(path), "MID")
    side = _LDM[spot[1]]
    return (*_ancestors(path), f"{side}{int(spot[2]):02}", side)


def _ancestors(path: str) -> tuple[str, ...]:
    parts = path.split(".")
    return tuple(".".join(parts[:n]) for n in range(len(parts), 0, -1))
