"""Numbers that are none, or out of every range, wherever the command line takes one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.faults.case import Case
from tests.faults.inputs._adapters import write_lora

NOT_NUMBERS = ("nan", "inf", "-inf", "NaN", "1e999", "", " ", "one", "1,5", "0x10", "1e5000", "--1")
TOO_LARGE = ("1e30", "-1e30")
NO_COUNTS = ("0", "-1", "1.5", "99999999999999999999")

Line = Callable[[str], Sequence[str]]

MERGE = ("merge", "a.safetensors", "b.safetensors", "--out", "out.safetensors")
RESIZE = ("resize", "a.safetensors", "out.safetensors")
SAMPLE = ("sample", "a dog", "--device", "cpu")

PLACES: dict[str, tuple[Line, tuple[str, ...]]] = {
    "merge weight": (
        lambda text: ["merge", f"a.safetensors:{text}", "--out", "out.safetensors"],
        TOO_LARGE,
    ),
    "merge second weight": (
        lambda text: ["merge", "a.safetensors", f"b.safetensors:{text}", "--out", "o.safetensors"],
        TOO_LARGE,
    ),
    "merge --te-weight": (lambda text: [*MERGE, f"--te-weight={text}"], TOO_LARGE),
    "merge --block": (lambda text: [*MERGE, f"--block=mid_block={text}"], TOO_LARGE),
    "merge --block of the second": (lambda text: [*MERGE, f"--block=2:mid_block={text}"], ()),
    "merge --rank": (
        lambda text: [*MERGE, "--method=svd", f"--rank={text}"],
        (*TOO_LARGE, *NO_COUNTS),
    ),
    "merge --density": (
        lambda text: [*MERGE, "--method=ties", f"--density={text}"],
        (*TOO_LARGE, "-1", "1.5", "0"),
    ),
    "merge --seed": (
        lambda text: [*MERGE, "--method=dare_ties", f"--seed={text}"],
        (*TOO_LARGE, "-1"),
    ),
    "bake weight": (
        lambda text: ["bake", "base", f"a.safetensors:{text}", "--out", "out.safetensors"],
        TOO_LARGE,
    ),
    "bake --te-weight": (
        lambda text: ["bake", "base", "a.safetensors", "--out", "o", f"--te-weight={text}"],
        TOO_LARGE,
    ),
    "bake --block": (
        lambda text: ["bake", "base", "a.safetensors", "--out", "o", f"--block=mid_block={text}"],
        TOO_LARGE,
    ),
    "resize --rank": (lambda text: [*RESIZE, f"--rank={text}"], (*TOO_LARGE, *NO_COUNTS)),
    "resize --energy": (lambda text: [*RESIZE, f"--energy={text}"], (*TOO_LARGE, "-1", "1.5", "0")),
    "extract --rank": (
        lambda text: ["extract", "base", "base", "o.safetensors", f"--rank={text}"],
        (*TOO_LARGE, *NO_COUNTS),
    ),
    "extract --energy": (
        lambda text: ["extract", "base", "base", "o.safetensors", f"--energy={text}"],
        (*TOO_LARGE, "-1", "1.5", "0"),
    ),
    "extract --block": (
        lambda text: ["extract", "base", "base", "o.safetensors", f"--block=mid_block={text}"],
        (*TOO_LARGE, "-1"),
    ),
    "sample --steps": (lambda text: [*SAMPLE, f"--steps={text}"], (*TOO_LARGE, *NO_COUNTS, "1e9")),
    "sample --count": (lambda text: [*SAMPLE, f"--count={text}"], (*TOO_LARGE, *NO_COUNTS)),
    "sample --width": (
        lambda text: [*SAMPLE, f"--width={text}"],
        (*TOO_LARGE, *NO_COUNTS, "63", "8000000"),
    ),
    "sample --height": (
        lambda text: [*SAMPLE, f"--height={text}"],
        (*TOO_LARGE, *NO_COUNTS, "63", "8000000"),
    ),
    "sample --batch-size": (
        lambda text: [*SAMPLE, f"--batch-size={text}"],
        (*TOO_LARGE, *NO_COUNTS),
    ),
    "sample --guidance": (lambda text: [*SAMPLE, f"--guidance={text}"], (*TOO_LARGE, "-1")),
    "sample --seed": (
        lambda text: [*SAMPLE, f"--seed={text}"],
        (*TOO_LARGE, "-1", "1.5", "1" * 30),
    ),
    "sample --adapter weight": (
        lambda text: [*SAMPLE, f"--adapter=a.safetensors:{text}"],
        TOO_LARGE,
    ),
    "estimate --limit": (lambda text: ["estimate", f"--limit={text}"], (*TOO_LARGE, "0", "-1")),
    "runs kill --patience": (
        lambda text: ["runs", "kill", "runs/a", f"--patience={text}"],
        (*TOO_LARGE, "-1"),
    ),
    "launch --processes": (
        lambda text: ["launch", f"--processes={text}"],
        (*TOO_LARGE, *NO_COUNTS, "1000000"),
    ),
    "launch --gpus": (lambda text: ["launch", f"--gpus={text}"], ("-1", "0,0", "0,,1", "²", "1e3")),
}
"""Where a number is taken, and what else cannot be meant there."""

UNNAMED = ("a.safetensors:", ":1", ":", "", " ", "a.safetensors:1:", "a.safetensors::1", "a\nb:1")
"""No file, or no weight, though the colon says that there is one."""

BLOCKS = (
    "nope=1",
    "mid_block",
    "=1",
    "mid_block=",
    "3:mid_block=1",
    "0:mid_block=1",
    "x:mid_block=1",
)


def cases() -> Iterator[Case]:
    """All of them."""
    for where, (line, more) in PLACES.items():
        for text in (*NOT_NUMBERS, *more):
            yield Case("numbers", f"{where} {text[:24]!r}", _make(line(text)))
    for text in UNNAMED:
        line = ["merge", text, "--out", "out.safetensors"]
        yield Case("numbers", f"merge {text!r}", _make(line))
        yield Case("numbers", f"sample {text!r}", _make([*SAMPLE, f"--adapter={text}"]))
    for text in BLOCKS:
        yield Case("numbers", f"merge --block={text}", _make([*MERGE, f"--block={text}"]))
        line = ["bake", "base", "a.safetensors", "--out", "o", f"--block={text}"]
        yield Case("numbers", f"bake --block={text}", _make(line))
    yield from _runs()
    for text in ("0.5", "-1", "1", "2e0", ".5"):
        line = list(PLACES["merge weight"][0](text))
        yield Case("numbers", f"merge weight {text}, a good one", _make(line), expected="accepted")
    good = ["--te-weight=0.5", "--block=mid_block=0", "--density=0.3"]
    for option in good:
        line = [*MERGE, option]
        yield Case("numbers", f"merge {option}, a good one", _make(line), expected="accepted")


def _make(line: Sequence[str]) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        for name in ("a", "b"):
            write_lora(folder / f"{name}.safetensors")
        run = folder / "runs" / "a"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("run: {name: a}\n", encoding="utf-8")
        return line

    return make


def _runs() -> Iterator[Case]:
    """Names of runs."""
    names = ("", " ", ".", "..", "/", "/etc", "../..", "nope", "[/red]", "a\nb", "x" * 5000)
    for name in names:
        for action in ("show", "follow", "stop", "kill"):
            line = ["runs", action, name]
            yield Case("runs", f"{action} {name[:20]!r}", _make(line))
        yield Case("runs", f"sample {name[:20]!r}", _make(["sample", "a dog", "--run", name]))
        yield Case("runs", f"resume {name[:20]!r}", _make(["train", "--resume", name]))
    for place in ("runs", "nowhere", ".", "a.safetensors"):
        line = ["runs", "--runs", place]
        yield Case("runs", f"those in {place}", _make(line), expected="accepted")
    yield Case("runs", "show a run", _make(["runs", "show", "a"]), expected="accepted")
