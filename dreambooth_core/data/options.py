"""Options of how images and captions are prepared. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dreambooth_core.config.fields import advanced, option
from dreambooth_core.errors import UserError

LATENT_FACTOR = 8
"""Every Stable Diffusion autoencoder makes one latent of 8 × 8 pixels."""

STANDARD = 512
"""Pixels of a side where no base is known that would say; a run's configuration always does."""

SMALLEST, LARGEST = 64, 4096
"""Pixels of a side."""


@dataclass
class DataOptions:
    """How images and captions are prepared."""

    resolution: int | None = option(
        None,
        between=(SMALLEST, LARGEST),
        unit="px",
        help="""Side of a square image. Buckets of other aspect ratios have at most as many pixels.
        Empty: the size that the base was made for.""",
    )
    resolutions: list[int] = option(
        factory=list,
        label="More resolutions",
        help="""Sides of further squares, such as [768, 1024]: each image is trained at these too,
        in buckets of their own. An epoch shows it once at each.""",
        between=(SMALLEST, LARGEST),
    )
    height: int | None = option(None, between=(64, 4096), unit="px", help="Empty: the resolution.")
    width: int | None = option(None, between=(64, 4096), unit="px", help="Empty: the resolution.")
    crop: str = option(
        "bucket",
        choices=("bucket", "center", "random"),
        help="""bucket: each image keeps about its aspect ratio, and images of one bucket share a
        batch. center, random: every image is cropped to height × width.""",
    )
    crop_positions: int = advanced(
        8,
        between=(0, 1_000),
        help="""Random crops take one of this many positions, so that their latents can be kept.
        0: any position, encoded anew each time.""",
    )
    bucket_reso_steps: int = advanced(
        64,
        label="Bucket resolution steps",
        between=(8, 1_024),
        unit="px",
        help="Sides of buckets are multiples of this. 64 suits every Stable Diffusion UNet.",
        aliases=("bucket_step",),
    )
    bucket_stretch: float = advanced(
        2.0,
        between=(1.0, 8.0),
        help="The longest side of a bucket, as a multiple of the resolution.",
    )
    flip: bool = option(
        False,
        label="Random flip",
        help="""Mirror half of the images, chosen at random. Not for subjects with writing or a
        fixed side.""",
    )
    rotation: float = option(
        0.0,
        label="Random rotation",
        between=(0.0, 45.0),
        help="""Turn instance images by up to so much to either side. They are enlarged until no
        corner is empty: 5° cuts off 8% of a square's sides.""",
    )
    color_jitter: float = option(
        0.0,
        label="Colour jitter",
        between=(0.0, 0.9),
        help="""Change brightness, contrast and saturation of instance images by up to this share:
        0.1 is what a camera does. Not for styles, nor where the colours matter.""",
    )
    variants: int = advanced(
        4,
        label="Variants of an image",
        between=(0, 1_000),
        help="""Random rotation and colour jitter take turns with this many changed versions of each
        image and itself, so that their latents can be kept. 0: another each time, encoded anew.""",
    )
    background: str = option(
        "white",
        choices=("white", "black", "grey"),
        help="The colour behind transparent images.",
    )
    subfolders: bool = option(
        True,
        help="Take images from the folders inside the image folder too, one level deep.",
    )
    captions: str = option(
        "auto",
        choices=("auto", "prompt", "files", "filewords"),
        help="""auto: the .txt or .caption file beside an image, else the instance prompt.
        prompt: always the instance prompt. files: the caption files. filewords: the words of the
        file names (or caption files), put where the prompt says [filewords].""",
    )
    templates: list[str] = option(
        factory=list,
        label="Prompt templates",
        help="""One is drawn for each image and epoch, like "a rendering of [prompt]".
        Placeholders: [prompt] (or {}), [filewords], [name].""",
    )
    shuffle_caption: bool = option(
        False,
        label="Shuffle tags",
        help="Shuffle the comma-separated tags of a caption anew each epoch.",
        aliases=("shuffle_tags",),
    )
    keep_tokens: int = option(
        0,
        label="Keep first N tags",
        between=(0, 1_000),
        help="The first N tags of a caption are neither shuffled nor dropped.",
        aliases=("keep_tags",),
    )
    caption_tag_dropout_rate: float = option(
        0.0,
        label="Tag dropout rate",
        between=(0.0, 1.0),
        help="The probability that a tag is left out.",
        aliases=("tag_dropout",),
    )
    caption_dropout_rate: float = option(
        0.0,
        between=(0.0, 1.0),
        help="The probability that an instance image is trained with an empty caption.",
        aliases=("caption_dropout",),
    )
    masks: str = option(
        "none",
        label="Masked loss",
        choices=("none", "auto", "files", "alpha"),  # not "off": YAML reads it as false
        help="""Where the loss counts. files: name.mask.png or name-mask.png beside the image, or
        masks/name.png; white counts. alpha: the image's transparency. auto: the file, else the
        alpha.""",
    )
    unmasked_weight: float = option(
        0.0,
        label="Weight outside the mask",
        between=(0.0, 1.0),
        help="How much the loss counts where the mask is black; 1 ignores masks.",
        aliases=("objective.mask_floor",),
    )
    held_out: int | None = option(
        None,
        label="Images held out",
        between=(0, 10_000),
        help="""How many images of each concept are not trained on, to tell which step is best.
        Empty: one in five of eight or more where the best step is looked for, else none.""",
    )
    balance_concepts: bool = option(
        False,
        help="""Repeat the images of small concepts so that all concepts are seen about equally
        often.""",
    )
    cache: str = option(
        "memory",
        choices=("memory", "disk", "none"),
        help="Where encoded images and captions are kept: disk survives the run.",
    )
    cache_folder: str = advanced(
        "",
        path="folder",
        help="For the disk cache. Empty: a folder beside the runs.",
    )
    cache_batch_size: int = advanced(
        1,
        label="VAE batch size",
        between=(1, 1_024),
        help="""Images that are encoded at once while caching. More is faster on some GPUs; 1 keeps
        results independent of the order.""",
    )

    @property
    def has_finite_views(self) -> bool:
        """Whether an image is seen in so many ways that all can be encoded beforehand."""
        changes = self.rotation or self.color_jitter
        any_place = self.crop == "random" and self.crop_positions == 0
        return not any_place and not (changes and self.variants == 0)

    def by_resolution(self) -> list[DataOptions]:
        """These options for each resolution, the first first.

        Raises:
            UserError: a further resolution is none, or there twice.
        """
        where = "data.resolutions"
        if self.resolutions and (self.height or self.width):
            raise UserError(
                "there are several resolutions, and one height and width for all",
                where=where,
                do="Set data.resolution in place of data.height and data.width.",
            )
        found = [self]
        for side in self.resolutions:
            if not SMALLEST <= side <= LARGEST or side % LATENT_FACTOR:
                what = f"{side} is no side of an image"
                do = f"Take multiples of {LATENT_FACTOR} from {SMALLEST} to {LARGEST}."
                raise UserError(what, where=where, do=do)
            if side in [each.resolution or STANDARD for each in found]:
                do = "Name each side once, and not data.resolution again."
                raise UserError(f"{side} is there twice", where=where, do=do)
            found.append(replace(self, resolution=side, resolutions=[]))
        return found

    def largest_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the largest square or size. Raises as the two others."""
        sizes = [each.fixed_size() for each in self.by_resolution()]
        return max(sizes, key=lambda size: size[0] * size[1])

    def fixed_size(self) -> tuple[int, int]:
        """(height, width) in pixels of an image that is not in a bucket.

        Raises:
            UserError: ``height``, ``width`` or ``resolution`` is not a multiple of 8.
        """
        side = self.resolution or STANDARD
        size = (self.height or side, self.width or side)
        for name, value in zip(("height", "width"), size, strict=True):
            if value % LATENT_FACTOR:
                where = f"data.{name}" if getattr(self, name) else "data.resolution"
                near = max(round(value / 64) * 64, 64)
                raise UserError(
                    f"{value} is not a multiple of {LATENT_FACTOR}", where=where, do=f"Try {near}."
                )
        return size
