"""Folders of images that hang, fill the memory, or lie about what they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.faults.case import Case, Expected
from tests.faults.inputs._images import NONE_AT_ALL, ODD_BUT_GOOD, draw, encoded, png, zeros
from tests.faults.inputs.configs import GOOD

ENDINGS = (".png", ".jpg", ".gif", ".webp", ".tif", ".heic", ".tga", "")

Write = Callable[[Path], object]


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _alone()
    yield from _odd()
    yield from _folders()
    yield from _captions()
    yield from _masks()
    yield from _class_images()


def line(command: str, *given: str, images: str = "images") -> list[str]:
    """A command line for a folder of images."""
    concept = (
        f"concepts=[{{images: '{images}', instance_prompt: a photo of sks dog, "
        "class_prompt: a photo of a dog}]"
    )
    return [command, *GOOD, concept, *given]


def case(
    name: str,
    write: Write,
    *given: str,
    command: str = "check",
    expected: Expected = "refused",
    images: str = "images",
) -> Case:
    """``write`` fills the folder ``images``."""

    def make(folder: Path) -> Sequence[str]:
        (folder / "images").mkdir()
        write(folder / "images")
        return line(command, *given, images=images)

    return Case("images", f"{command}: {name}", make, expected)


def _alone() -> Iterator[Case]:
    """One file that is no image, and nothing else."""
    for what, content in NONE_AT_ALL.items():
        for ending in ENDINGS:
            yield case(f"{what}, as {ending or 'nothing'}", _holding(f"a{ending}", content))
        yield case(what, _holding("a.png", content), command="train")
    for what, content in list(NONE_AT_ALL.items())[::4]:
        # Beside a good one it is skipped, with a reason.
        yield case(f"{what} beside a good one", _beside("b.png", content), expected="accepted")


def _holding(name: str, content: Callable[[], bytes]) -> Write:
    return lambda folder: (folder / name).write_bytes(content())


def _beside(name: str, content: Callable[[], bytes]) -> Write:
    def write(folder: Path) -> None:
        draw(folder)
        (folder / name).write_bytes(content())

    return write


def _odd() -> Iterator[Case]:
    for what, (name, content) in ODD_BUT_GOOD.items():
        yield case(what, _holding(name, content), expected="accepted")


def _many(count: int, ending: str) -> Write:
    def write(folder: Path) -> None:
        for number in range(count):
            os.mknod(folder / f"{number}{ending}")

    return write


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "a.png")


def _looped(folder: Path) -> None:
    draw(folder)
    (folder / "again").symlink_to(folder)
    (folder / "above").symlink_to(folder.parent)


def _deep(folder: Path) -> None:
    draw(folder.joinpath(*"abcdefgh"))


FOLDERS: dict[str, Write] = {
    "nothing": lambda folder: None,
    "a pipe": _fifo,
    "a link to /dev/zero": lambda folder: (folder / "a.png").symlink_to("/dev/zero"),
    "a link to /proc": lambda folder: (folder / "a").symlink_to("/proc"),
    "a link to a process's memory": lambda folder: (folder / "a.png").symlink_to("/proc/self/mem"),
    "a link to itself": lambda folder: (folder / "a.png").symlink_to("a.png"),
    "a link to nothing": lambda folder: (folder / "a.png").symlink_to("b.png"),
    "a folder named like an image": lambda folder: (folder / "a.png").mkdir(),
    "too deep": _deep,
    "60,000 texts": _many(60_000, ".txt"),
    "60,000 empty images": _many(60_000, ".png"),
    "3,000 empty images": _many(3_000, ".png"),
    "only captions": lambda folder: (folder / "a.txt").write_text("a dog"),
    "only masks": lambda folder: (folder / "a.mask.png").write_bytes(encoded()),
    "metadata.jsonl": lambda folder: (folder / "metadata.jsonl").write_text("{"),
    "captions.json": lambda folder: (folder / "captions.json").write_bytes(b"[" * 100_000),
    "hidden files": lambda folder: (folder / ".a.png").write_bytes(encoded()),
    "a hole of a terabyte": lambda folder: _hole(folder / "a.png", 1 << 40),
    "a hole of 900 MB": lambda folder: _hole(folder / "a.png", 900 << 20),
    "a hole of 300 MB": lambda folder: _hole(folder / "a.png", 300 << 20),
}
"""Nothing in them can be trained on."""

PLACES = (
    *("/proc", "/sys", "/dev", "/proc/self", "/proc/self/fd", "/proc/self/task", "/dev/fd"),
    *("/sys/kernel", "/sys/class", "/dev/null", "/dev/zero", "/etc/passwd", "/nowhere", "images/a"),
    *("~nobody/x", "x" * 3000, "[/red]", "C:\\x", "//server/share", "http://a/b", " ", "."),
)


def _hole(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _folders() -> Iterator[Case]:
    for what, write in FOLDERS.items():
        for command in ("check", "train"):
            yield case(f"a folder of {what}", write, command=command)
    for place in PLACES:
        for command in ("check", "train"):
            name = f"the folder {place[:20]!r}"
            yield case(name, lambda _: None, command=command, images=place)
    yield case("links that go round", _looped, expected="accepted")
    yield case("subfolders named like 10_dog", lambda f: draw(f / "10_dog"), expected="accepted")
    yield case(
        "subfolders named like 9999_dog", lambda f: draw(f / "9999_dog"), expected="accepted"
    )


CAPTIONS: dict[str, tuple[bytes, Expected]] = {
    "of 20 MB": (b"a dog " * 3_500_000, "refused"),
    "of 100,000 tags": (b"tag, " * 100_000, "refused"),
    "of 5,000 words": (b"dog " * 5_000, "either"),
    "of one word of 5,000 letters": (b"x" * 5_000, "accepted"),
    "that is empty": (b"", "accepted"),
    "of NUL": (bytes(500), "accepted"),
    "of random bytes": (bytes(range(256)) * 8, "accepted"),
    "in latin-1": ("ein gr\xfcner Hund".encode("latin-1"), "accepted"),
    "in UTF-16": ("a dog".encode("utf-16"), "accepted"),
    "in half of UTF-16": (b"\xff\xfea", "accepted"),
    "with markup": (b"a [/red] [bold] dog", "accepted"),
    "with escape codes": (b"a \x1b[31m dog \x07", "accepted"),
    "with line ends": (b"a\r\n\r\ndog\n", "accepted"),
    "with placeholders": (b"[filewords] [name] {} [prompt]", "accepted"),
    "with the end of a text": (b"a dog <|endoftext|> <|startoftext|>", "accepted"),
}

ODD_CAPTIONS: dict[str, Write] = {
    "that is a pipe": os.mkfifo,
    "that is a folder": Path.mkdir,
    "that is a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "that is a link to itself": lambda path: path.symlink_to(path.name),
    "with a hole of 10 GB": lambda path: _hole(path, 10 << 30),
}


def _captions() -> Iterator[Case]:
    modes: tuple[tuple[str, ...], ...] = ((), ("data.captions=filewords",))
    for given in modes:
        for what, (content, expected) in CAPTIONS.items():
            name = f"a caption {what} {' '.join(given)}"
            yield case(name, _captioned(content), *given, expected=expected)
    for what, write in ODD_CAPTIONS.items():
        for ending in (".txt", ".caption"):

            def beside(folder: Path, write: Write = write, ending: str = ending) -> None:
                draw(folder)
                write(folder / f"0{ending}")

            name = f"a caption {ending} {what}"
            yield case(name, beside, expected="refused" if "hole" in what else "either")
            yield case(name + ", asked for", beside, "data.captions=files")


def _captioned(content: bytes) -> Write:
    def write(folder: Path) -> None:
        draw(folder)
        (folder / "0.txt").write_bytes(content)

    return write


MASKS: dict[str, Write] = {
    "of another size": lambda path: path.write_bytes(encoded(size=(7, 900))),
    "of one pixel": lambda path: path.write_bytes(encoded(size=(1, 1))),
    "that is no image": lambda path: path.write_bytes(b"none"),
    "that claims 100000 x 100000": lambda path: path.write_bytes(png(100_000, 100_000)),
    "of 20000 x 20000": lambda path: path.write_bytes(zeros(20_000, 20_000)),
    "that is a pipe": os.mkfifo,
    "that is a folder": Path.mkdir,
    "that is a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "in floats": lambda path: path.write_bytes(encoded("TIFF", mode="F")),
    "transparent": lambda path: path.write_bytes(encoded(mode="RGBA")),
}


def _masks() -> Iterator[Case]:
    for what, write in MASKS.items():
        for place in ("0.mask.png", "masks/0.png"):

            def beside(folder: Path, write: Write = write, place: str = place) -> None:
                draw(folder)
                (folder / "masks").mkdir()
                write(folder / place)

            yield case(f"a mask {place} {what}", beside, "data.masks=files", expected="accepted")


def _class_images() -> Iterator[Case]:
    """The folder of class images is of a person's choosing too."""
    for place in PLACES[:13]:
        for command in ("check", "train"):
            name = f"class images in {place!r}"
            given = ("prior.enabled=true", f"concepts[0].class_images={place}")
            refused = place != "/nowhere"
            if refused:
                yield case(name, lambda f: draw(f), *given, command=command)
    for number in ("1e12", "-1", "0", "nan", "1000001", "99999999999999999999"):
        for key in ("prior.num_class_images", "concepts[0].num_class_images"):
            for command in ("check", "train", "estimate"):
                given = ("prior.enabled=true", f"{key}={number}")
                name = f"{key}={number}"
                yield case(name, lambda f: draw(f), *given, command=command)
