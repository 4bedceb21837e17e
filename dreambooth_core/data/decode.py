"""Image files to upright RGB, whatever they are: the only place that knows file formats.

Pillow only, no torch: taking stock of a folder should not wait for torch to load.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError

FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "DIB"),
    *("TIFF", "PPM", "JPEG2000", "QOI", "JXL"),
)
"""Formats of photographs and drawings. Others that Pillow opens run programs (EPS), need a
neighbour, or have no mark to know them by (TGA: taken only by its suffix)."""

BACKGROUND_COLOURS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}

MOST_PIXELS = 120_000_000
"""Half a gigabyte of memory; no camera takes more but those for billboards."""

_ANIMATIONS = {"GIF", "PNG", "WEBP", "AVIF", "JXL"}
_HEIF_SUFFIXES = {".heic", ".heif", ".hif"}
_NOT_IMAGES = {
    "a video": {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".wmv", ".3gp"},
    "an archive; unpack it": {".zip", ".rar", ".7z", ".tar", ".gz", ".tgz"},
    "a model": {".safetensors", ".ckpt", ".pt", ".pth", ".bin"},
    "another program's cache": {".npz", ".npy"},
    "a camera raw file; save it as JPEG or PNG": {
        *{".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf", ".rw2"}
    },
    "a drawing program's file; save it as PNG": {".psd", ".xcf", ".kra", ".ai", ".svg", ".eps"},
    "not an image": {".json", ".jsonl", ".csv", ".md", ".pdf", ".html", ".py", ".yaml", ".toml"},
}
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image as the bytes of a file of that kind."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


@dataclass(frozen=True)
class Facts:
    """What a decoded file turned out to be. Sizes are pixels, upright."""

    width: int
    height: int
    format: str
    mode: str
    has_alpha: bool
    notes: tuple[str, ...]


class Undecodable(Exception):
    """The bytes are no image that can be used; the message is the reason."""


def refusal_of(suffix: str) -> str | None:
    """The reason why a file of this suffix is no image, without opening it."""
    for reason, suffixes in _NOT_IMAGES.items():
        if suffix.lower() in suffixes:
            return reason
    return None


def probe(content: bytes, suffix: str = "") -> Facts:
    """Decode a file to the last pixel and say what it is.

    Raises:
        Undecodable: with the reason.
    """
    with _opened(content, suffix) as image:
        notes = [*_kind_notes(image, content, suffix)]
        turn = _orientation(image)
        width, height = image.size
        if turn in _UPRIGHT:
            notes.append("turned upright as its EXIF says")
            if turn >= 5:
                width, height = height, width
        alpha = _is_transparent(image)
        if alpha:
            notes.append("transparent parts are laid on the background")
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        return Facts(width, height, kind, image.mode, alpha, tuple(notes))


def decode(content: bytes, suffix: str = "", background: str = "white") -> Image.Image:
    """An upright 8-bit RGB image; transparent parts show ``background``.

    Raises:
        Undecodable: with the reason.
    """
    with _opened(content, suffix) as image:
        upright = _upright(image)
        if not _has_alpha_channel(upright):
            return _flatten(upright)
        layers = upright.convert("RGBA")
        alpha = layers.getchannel("A")
        colour = ImageColor.getrgb(BACKGROUND_COLOURS.get(background, background))
        result = Image.new("RGB", layers.size, colour)
        solid = layers.convert("RGB")
        solid.info = dict(image.info)
        result.paste(_flatten(solid), mask=alpha)
        return result


def decode_grey(content: bytes, suffix: str = "", *, alpha: bool = False) -> Image.Image:
    """An upright 8-bit grey image: the brightness, or the alpha channel.

    Raises:
        Undecodable: with the reason.
    """
    with _opened(content, suffix) as image:
        upright = _upright(image)
        if alpha:
            return upright.convert("RGBA").getchannel("A")
        if _has_alpha_channel(upright):
            layers = upright.convert("RGBA")
            result = Image.new("L", layers.size, 0)
            result.paste(layers.convert("L"), mask=layers.getchannel("A"))
            return result
        return _eight_bit(upright).convert("L")


@contextlib.contextmanager
def _opened(content: bytes, suffix: str) -> Iterator[Image.Image]:
    """The first frame, fully decoded; every failure becomes :class:`Undecodable`."""
    if not content:
        raise Undecodable("empty (0 bytes)")
    formats = _known_formats(suffix)
    with warnings.catch_warnings():
        # Pillow warns of large images and of odd metadata; what matters is in the notes.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=formats) as image:
                # Not the number of frames: to count those of a GIF is to read them all.
                if getattr(image, "is_animated", False) and image.format in _ANIMATIONS:
                    raise Undecodable("animated; save one of its frames as an image")
                if image.width * image.height > MOST_PIXELS:
                    raise Undecodable(_too_many())
                image.load()
                yield image
        except Undecodable:
            raise
        except Image.DecompressionBombError as error:
            raise Undecodable(_too_many()) from error
        except MemoryError as error:
            raise Undecodable("too large for the memory") from error
        except UnidentifiedImageError as error:
            raise Undecodable(_unknown(content, suffix)) from error
        except Exception as error:
            # Damaged files make Pillow's decoders raise nearly anything (struct.error,
            # SyntaxError, KeyError, zlib.error …): whatever it is, the file is unusable.
            text = " ".join(str(error).split())[:120] or type(error).__name__
            raise Undecodable(f"damaged ({text})") from error


def _too_many() -> str:
    return f"more than {MOST_PIXELS // 1_000_000} million pixels; make it smaller"


def _known_formats(suffix: str) -> tuple[str, ...]:
    Image.init()
    if suffix.lower() in _HEIF_SUFFIXES and "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):
            import pillow_heif

            pillow_heif.register_heif_opener()
    known = tuple(name for name in FORMATS if name in Image.OPEN)
    return (*known, "TGA") if suffix.lower() == ".tga" else known


def _unknown(content: bytes, suffix: str) -> str:
    if suffix.lower() in _HEIF_SUFFIXES or content[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1"):
        return "HEIC, which needs the package pillow-heif; or save it as JPEG or PNG"
    if content[4:12] in (b"ftypavif", b"ftypavis"):
        return "AVIF, which this Pillow cannot read; save it as JPEG or PNG"
    if content[:12] == b"\0\0\0\x0cJXL \r\n\x87\n" or content[:2] == b"\xff\x0a":
        return "JPEG XL, which cannot be read; save it as JPEG or PNG"
    known = {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"}
    return "damaged (not what its name says)" if suffix.lower() in known else "not an image"


def _kind_notes(image: Image.Image, content: bytes, suffix: str) -> Iterator[str]:
    """What is unusual about a file that is taken all the same."""
    frames = int(getattr(image, "n_frames", 1))
    if frames > 1 and image.format == "TIFF":
        yield f"the first of {frames} pages"
    deep = _is_deep(image)
    if deep or (image.format == "PNG" and content[24:25] == b"\x10"):
        yield "more than 8 bits a channel, scaled to 8"
    if image.mode == "CMYK":
        yield "CMYK, converted to RGB"
    elif image.mode in ("L", "LA", "1") or deep:
        yield "grey"
    if (profile := _profile_name(image)) is not None:
        yield f"colours converted from {profile}"
    names = {
        *{ext for ext, kind in Image.EXTENSION.items() if kind == image.format},
        *({".jpg", ".jpeg", ".jfif", ".jpe"} if image.format == "MPO" else ()),
    }
    if suffix.lower() not in names:
        yield f"is {image.format}, though its name does not say so"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001
        # A damaged EXIF block raises nearly anything, and the image is good without it.
        return 1


def _upright(image: Image.Image) -> Image.Image:
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _has_alpha_channel(image: Image.Image) -> bool:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        return True
    return "transparency" in image.info and not _is_deep(image)


def _is_transparent(image: Image.Image) -> bool:
    if not _has_alpha_channel(image):
        return False
    layers = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
    lowest = layers.getchannel("A").getextrema()[0]
    return bool(lowest < 255)  # type: ignore[operator]


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode without alpha to RGB, through the image's own colour profile if it has one."""
    if _profile_name(image) is not None:
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        with contextlib.suppress(ImageCms.PyCMSError):
            converted: Any = ImageCms.profileToProfile(
                image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            converted.info = {}
            return converted
    return _eight_bit(image).convert("RGB")


def _profile_name(image: Image.Image) -> str | None:
    """The name of a colour profile that differs from sRGB, for modes where it matters."""
    data = image.info.get("icc_profile")
    if not data or image.mode not in ("RGB", "RGBA", "CMYK"):
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        name = ImageCms.getProfileDescription(profile).strip()
        space = profile.profile.xcolor_space.strip()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if "srgb" in name.lower() or space != ("CMYK" if image.mode == "CMYK" else "RGB"):
        return None
    return name or "an unnamed profile"


def _is_deep(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bit(image: Image.Image) -> Image.Image:
    """Deep grey modes scaled to 8 bits; Pillow's own conversion would clip them at 255."""
    if not _is_deep(image):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    top = float(values.max(initial=0.0))
    if image.mode == "F":
        full = 1.0 if top <= 1.0 else 255.0 if top <= 255.0 else top
    else:
        full = 65535.0 if image.mode.startswith("I;16") or 255 < top <= 65535 else max(top, 255.0)
    return Image.fromarray(np.clip(np.rint(values / full * 255), 0, 255).astype(np.uint8))
