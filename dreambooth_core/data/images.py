"""Images to tensors: scaled by Lanczos, cut, mirrored, turned; by Pillow and numpy alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from dreambooth_core.data.changes import Light
from dreambooth_core.data.decode import Undecodable, decode, decode_grey
from dreambooth_core.data.inventory import ImageFile, hash_bytes
from dreambooth_core.data.plan import Size, View, scaled
from dreambooth_core.errors import UserError


def load_rgb(image: ImageFile, background: str = "white") -> Image.Image:
    """An image's file as upright 8-bit RGB, cropped if it has a crop.

    Raises:
        UserError: The file has gone or was changed since stock was taken: what is cached under
            its old content must not come from the new.
    """
    try:
        content = _read(image.path, image.content_hash)
        whole = decode(content, image.path.suffix, background)
    except Undecodable as error:
        raise UserError(f"the image cannot be used: {error}", where=image.path) from error
    return whole if image.crop is None else whole.crop(image.crop.box(*whole.size))


def load_mask(image: ImageFile, source: str = "auto") -> Image.Image | None:
    """The image's mask as 8-bit grey of the image's size, 255 where the loss counts; cropped along.

    Args:
        source: ``files`` (the mask file beside it), ``alpha``, ``auto`` (the file, else the alpha),
            ``none``. ``None`` where there is no such mask: everything counts.
    """
    if source == "none":
        return None
    size = (image.width, image.height)
    try:
        if source in ("auto", "files") and image.mask is not None:
            mask = decode_grey(_read(image.mask, image.mask_hash), image.mask.suffix)
            mask = mask if mask.size == size else mask.resize(size, Image.Resampling.BILINEAR)
        elif source in ("auto", "alpha") and image.has_alpha:
            content = _read(image.path, image.content_hash)
            mask = decode_grey(content, image.path.suffix, alpha=True)
        else:
            return None
    except Undecodable as error:
        raise UserError(f"the mask cannot be used: {error}", where=image.path) from error
    return mask if image.crop is None else mask.crop(image.crop.box(*size))


def apply_view(
    image: Image.Image, view: View, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """Scale to cover the view's size, cut, mirror, turn: of images and masks alike."""
    height, width = scaled((image.height, image.width), view.size)
    right, bottom = view.left + view.width, view.top + view.height
    if is_strip((image.height, image.width), view.size):
        # Only the part that stays is computed.
        across, down = image.width / width, image.height / height
        left_top = (view.left * across, view.top * down)
        right_bottom = (min(right * across, image.width), min(bottom * down, image.height))
        image = image.resize((view.width, view.height), resample, box=(*left_top, *right_bottom))
    else:
        image = scale(image, (height, width), resample)
        image = image.crop((view.left, view.top, right, bottom))
    if view.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return turned(image, view.change.angle) if view.change and view.change.angle else image


def zoom(size: Size, angle: float) -> float:
    """By how much what is turned by degrees is enlarged so that no corner is empty."""
    sin, cos = abs(math.sin(math.radians(angle))), math.cos(math.radians(angle))
    return cos + sin * max(size) / min(size)


def turned(image: Image.Image, angle: float) -> Image.Image:
    """Turned by degrees about its middle, counter-clockwise, and enlarged; of the same size."""
    enlarged = zoom(image.size, angle)
    cos = math.cos(math.radians(angle)) / enlarged
    sin = math.sin(math.radians(angle)) / enlarged
    x, y = image.width / 2, image.height / 2
    # Where each pixel of the result comes from; rows count downwards.
    source = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return image.transform(
        image.size, Image.Transform.AFFINE, source, resample=Image.Resampling.BICUBIC
    )


def in_light(image: Image.Image, light: Light) -> Image.Image:
    """An RGB image with its brightness, contrast and saturation changed by factors."""
    for kind, factor in zip(
        (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), light, strict=True
    ):
        image = kind(image).enhance(factor)
    return image


def seen(image: Image.Image, view: View) -> Image.Image:
    """The view of an RGB image."""
    found = apply_view(image, view)
    return found if view.change is None else in_light(found, view.change.light)


def scale(
    image: Image.Image, size: Size, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The whole image at (height, width)."""
    if (image.height, image.width) == size:
        return image
    return image.resize((size[1], size[0]), resample)


def is_strip(original: Size, target: Size) -> bool:
    """Whether so much is cut off that scaling the whole could fill the memory.

    A strip of 1 × 10000 pixels that is to cover 256 × 1024 would be 2.6 million pixels wide.
    """
    height, width = scaled(original, target)
    return height * width > 4 * target[0] * target[1]


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 [3, H, W] in [-1, 1]."""
    values = np.array(image.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(values).permute(2, 0, 1).contiguous() / 127.5 - 1.0


def pixels(image: ImageFile, view: View, background: str = "white") -> Tensor:
    """The view of an image as float32 [3, height, width] in [-1, 1]."""
    return to_tensor(seen(load_rgb(image, background), view))


def mask(image: ImageFile, view: View, source: str = "auto", floor: float = 0.0) -> Tensor | None:
    """The view of an image's mask as float32 [1, height, width] in [floor, 1], or ``None``.

    ``floor`` is the weight of what the mask leaves out.
    """
    grey = load_mask(image, source)
    if grey is None:
        return None
    values = np.array(apply_view(grey, view, Image.Resampling.BILINEAR), dtype=np.float32)
    return floor + (1.0 - floor) * torch.from_numpy(values).unsqueeze(0) / 255.0


def latent_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """A mask [..., 1, H, W] at the latents' size [..., 1, H/factor, W/factor], averaged."""
    flat = mask.reshape(-1, 1, *mask.shape[-2:])
    small = torch.nn.functional.avg_pool2d(flat, factor)
    return small.reshape(*mask.shape[:-2], *small.shape[-2:])


def _read(path: Path, expected_hash: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"the image cannot be read ({error.strerror})",
            where=path,
            do="It was there when the folder was looked at; put it back or start anew.",
        ) from error
    if expected_hash and hash_bytes(content) != expected_hash:
        raise UserError(
            "the image was changed while the run was going on",
            where=path,
            do="Start anew to train on the new one.",
        )
    return content
