"""Bytes changed in a few places, for readers that must take nothing for granted."""

from __future__ import annotations

from hypothesis import strategies as st

INTERESTING = b'\x00\xff\x7f\x80-9{}[]",:e.0N'


@st.composite
def mutated(draw: st.DrawFn, data: bytes, first: int = 0, last: int | None = None) -> bytes:
    """``data`` with up to three changes between the two places: bytes replaced, put in, taken
    out, repeated, or all behind one of them cut off."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        end = min(len(changed), len(changed) if last is None else last)
        at = draw(st.integers(min(first, end), end))
        some = draw(
            st.one_of(
                st.sampled_from([bytes([b]) for b in INTERESTING]),
                st.binary(min_size=1, max_size=4),
            )
        )
        kind = draw(st.sampled_from(("replace", "insert", "remove", "repeat", "cut")))
        if kind == "replace":
            changed[at : at + len(some)] = some
        elif kind == "insert":
            changed[at:at] = some
        elif kind == "remove":
            del changed[at : at + len(some)]
        elif kind == "repeat":
            changed[at:at] = changed[at : at + 40]
        else:
            del changed[at:]
    return bytes(changed)
