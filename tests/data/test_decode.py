"""Whatever a picture's file is, it becomes upright 8-bit RGB of the right colours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreambooth_core.data.decode import Undecodable, decode, decode_grey, probe


def _values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(draw, encode, orientation):
    upright = draw(20, 12)
    # What a camera that was turned this way has stored.
    inverse = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    methods = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        7: Image.Transpose.TRANSVERSE,
        **inverse,
    }
    stored = upright.transpose(methods[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(stored, "PNG", exif=exif)
    assert np.array_equal(_values(decode(content)), _values(upright))
    facts = probe(content, ".png")
    assert (facts.width, facts.height) == (20, 12)


def test_sixteen_bits_are_scaled_and_not_clipped(encode):
    deep = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)
    image = decode(encode(Image.fromarray(deep)))
    assert _values(image)[0, :, 0].tolist() == [0, 1, 100, 255]


def test_thirty_two_bit_greys(encode):
    whole = Image.fromarray(np.array([[0, 65535, 257 * 7]], dtype=np.int32))
    assert _values(decode(encode(whole, "TIFF")))[0, :, 1].tolist() == [0, 255, 7]
    real = Image.fromarray(np.array([[0.0, 1.0, np.nan, 0.2]], dtype=np.float32))
    assert _values(decode(encode(real, "TIFF")))[0, :, 1].tolist() == [0, 255, 0, 51]


@pytest.mark.parametrize(
    ("background", "expected"),
    [("white", (255, 255, 255)), ("black", (0, 0, 0)), ("grey", (128, 128, 128))],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_show_the_background(encode, background, expected, mode):
    image = Image.new("RGBA", (2, 1), (10, 10, 10, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    content = encode(image.convert(mode) if mode != "P" else image.quantize(4))
    assert probe(content, ".png").has_alpha
    result = decode(content, background=background)
    assert result.getpixel((0, 0)) == (10, 10, 10)
    assert result.getpixel((1, 0)) == expected


def test_a_colour_named_transparent(encode):
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    result = decode(encode(image, "PNG", transparency=(9, 9, 9)))
    assert result.getpixel((0, 0)) == (1, 2, 3)
    assert result.getpixel((1, 0)) == (255, 255, 255)


def test_opaque_alpha_is_not_transparency(draw, encode):
    content = encode(draw().convert("RGBA"))
    assert not probe(content, ".png").has_alpha
    assert np.array_equal(_values(decode(content)), _values(draw()))


def test_cmyk(encode):
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("CMYK")
    pixel = decode(encode(red, "JPEG", quality=95)).getpixel((4, 4))
    assert pixel[0] > 240
    assert max(pixel[1:]) < 15


def test_a_colour_profile_is_applied_and_srgb_left_alone(draw, encode):
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile of another colour space, or none at all, must not be applied.
    for profile in (srgb, lab, b"nonsense"):
        content = encode(draw(), "PNG", icc_profile=profile)
        assert np.array_equal(_values(decode(content)), _values(draw()))
    # sRGB's own profile with another name and swapped red and green: a profile that shows.
    swapped = bytearray(srgb)
    at = {swapped[i : i + 4].decode("latin-1"): i for i in range(128, 400, 4)}
    red, green = at["rXYZ"] + 4, at["gXYZ"] + 4
    swapped[red : red + 4], swapped[green : green + 4] = (
        swapped[green : green + 4],
        swapped[red : red + 4],
    )
    named = bytes(swapped).replace("sRGB".encode("utf-16-be"), "wRGB".encode("utf-16-be"))
    named = named.replace(b"sRGB b", b"wRGB b")
    content = encode(Image.new("RGB", (4, 4), (255, 0, 0)), "PNG", icc_profile=named)
    assert any("colours converted" in note for note in probe(content, ".png").notes)
    pixel = decode(content).getpixel((0, 0))
    assert pixel[1] > 240
    assert pixel[0] < 60


def test_grey_and_masks(encode):
    grey = Image.fromarray(np.array([[0, 100, 255]], dtype=np.uint8))
    assert _values(decode(encode(grey)))[0].tolist() == [[0] * 3, [100] * 3, [255] * 3]
    assert _values(decode_grey(encode(grey)))[0].tolist() == [0, 100, 255]
    clear = Image.new("RGBA", (2, 1), (255, 255, 255, 255))
    clear.putpixel((1, 0), (255, 255, 255, 40))
    assert _values(decode_grey(encode(clear), alpha=True))[0].tolist() == [255, 40]
    assert _values(decode_grey(encode(clear)))[0].tolist() == [255, 40]


def test_damaged_exif_does_not_cost_the_picture(draw, encode):
    content = encode(draw(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    assert probe(content, ".jpg").width == 40


@pytest.mark.parametrize("suffix", [".jpg", "", ".png"])
def test_programs_are_not_run_for_postscript(suffix):
    with pytest.raises(Undecodable):
        probe(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", suffix)
