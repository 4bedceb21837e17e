"""Images in bytes, good and damaged, for generators to put into folders."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image


def encoded(
    kind: str = "PNG", size: tuple[int, int] = (64, 64), mode: str = "RGB", **more: object
) -> bytes:
    """An image of one colour."""
    content = io.BytesIO()
    Image.new(mode, size, 90 if len(mode) == 1 else None).save(content, kind, **more)
    return content.getvalue()


def draw(folder: Path, count: int = 1) -> Path:
    """A folder of good images."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encoded(size=(64, 64 + number)))
    return folder


def frames(kind: str, count: int) -> bytes:
    """An animation, or a document of many pages."""
    # Each differs from the one before, or they would be written as one.
    made = [Image.new("RGB", (8, 8), (n % 256, n // 256, 9)) for n in range(count)]
    content = io.BytesIO()
    made[0].save(content, kind, save_all=True, append_images=made[1:])
    return content.getvalue()


def png(width: int, height: int, data: bytes = b"", colour: int = 2, depth: int = 8) -> bytes:
    """A PNG that claims a size, and has these compressed pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, body) for name, body in chunks)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def zeros(width: int, height: int) -> bytes:
    """A real PNG of so many black pixels, one bit each: a small file."""
    line = bytes(1 + (width + 7) // 8)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", data)
        + _chunk(b"IEND", b"")
    )


def with_text_bomb() -> bytes:
    """A PNG whose comment inflates to 200 MB."""
    good = encoded()
    bomb = zlib.compress(bytes(200_000_000), 9)
    return good[:33] + _chunk(b"zTXt", b"Comment\0\0" + bomb) + good[33:]


def turned(orientation: int) -> bytes:
    """A JPEG whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("JPEG", exif=exif)


Bytes = Callable[[], bytes]

NONE_AT_ALL: dict[str, Bytes] = {
    "empty": lambda: b"",
    "a text": lambda: b"no image at all",
    "zeros": lambda: bytes(5000),
    "a claim of 100000 x 100000": lambda: png(100_000, 100_000),
    "a claim of 2^31": lambda: png(2**31 - 1, 2**31 - 1),
    "no pixels": lambda: png(0, 64),
    "a real 20000 x 20000": lambda: zeros(20_000, 20_000),
    "a real 13000 x 13000": lambda: zeros(13_000, 13_000),
    "a comment of 200 MB": with_text_bomb,
    "a PNG cut in half": lambda: encoded()[:60],
    "a PNG without pixels": lambda: png(64, 64),
    "a PNG with a wrong sum": lambda: encoded()[:40] + b"\xff" + encoded()[41:],
    "a JPEG cut in half": lambda: encoded("JPEG")[: len(encoded("JPEG")) // 2],
    "a JPEG's header": lambda: encoded("JPEG")[:20],
    "a GIF of 3 frames": lambda: frames("GIF", 3),
    "a GIF of 3000 frames": lambda: frames("GIF", 3000),
    "an APNG of 2000 frames": lambda: frames("PNG", 2000),
    "a WEBP of 50 frames": lambda: frames("WEBP", 50),
    "a WEBP cut off": lambda: encoded("WEBP")[:30],
    "a BMP cut off": lambda: encoded("BMP")[:100],
    "a TIFF cut off": lambda: encoded("TIFF")[:100],
    "a video": lambda: b"\0\0\0\x18ftypmp42" + bytes(500),
    "a zip": lambda: b"PK\x03\x04" + bytes(500),
    "a PostScript program": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "an icon": lambda: b"\0\0\1\0" + bytes(500),
}
"""Files that cannot be trained on."""

ODD_BUT_GOOD: dict[str, tuple[str, Bytes]] = {
    "1 x 1": ("a.png", lambda: encoded(size=(1, 1))),
    "1 x 20000": ("a.png", lambda: encoded(size=(1, 20_000))),
    "20000 x 1": ("a.png", lambda: encoded(size=(20_000, 1))),
    "a wrong ending": ("a.jpg", encoded),
    "no ending": ("a", encoded),
    "too few lines": ("a.png", lambda: png(64, 64, bytes(193 * 10))),
    "many dots": ("a.b.c.d.png", encoded),
    "orientation 255": ("a.jpg", lambda: turned(255)),
    "orientation 0": ("a.jpg", lambda: turned(0)),
    "orientation 6": ("a.jpg", lambda: turned(6)),
    "a TIFF of 300 pages": ("a.tif", lambda: frames("TIFF", 300)),
    "CMYK": ("a.jpg", lambda: encoded("JPEG", mode="CMYK")),
    "one bit": ("a.png", lambda: encoded(mode="1")),
    "16 bits": ("a.png", lambda: encoded(mode="I;16")),
    "floats": ("a.tif", lambda: encoded("TIFF", mode="F")),
    "a palette": ("a.png", lambda: encoded(mode="P")),
    "transparent": ("a.png", lambda: encoded(mode="RGBA")),
    "a name of emoji": ("\U0001f436.png", encoded),
    "a name with markup": ("[red] a [bold].png", encoded),
    "a name with a line end": ("a\nb.png", encoded),
    "a name with escape codes": ("\x1b[31m.png", encoded),
    "a name that is no UTF-8": (b"caf\xe9.png".decode("utf-8", "surrogateescape"), encoded),
    "a long name": (f"{'x' * 240}.png", encoded),
}
"""Files that are unusual and can be trained on: name and content."""
