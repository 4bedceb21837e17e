"""Options of the run itself: how long, how much at once, what is saved and shown."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.fields import MAX_SEED, MAX_STEPS, advanced, option
from dreambooth_core.families.options import SCHEDULERS
from dreambooth_core.formats.layouts import LAYOUTS
from dreambooth_core.methods.table import ARRANGEMENTS

PRECISIONS = ("no", "fp16", "bf16", "full_bf16")
SHARDINGS = ("no", "full", "offload")
EPOCHS = 100
"""Of a run whose length nothing else says."""
MOST_STEPS = 10_000
"""Of a run that ends when it gets no better."""


@dataclass
class RunOptions:
    """Name, length, batch size and device of the run."""

    name: str = option("run", help="Name of the run, its folder and its results.")
    output: str = option(
        "runs", label="Runs folder", help="Folder that holds a folder for each run.", path="folder"
    )
    seed: int = option(
        0,
        help="Fixes every random choice of the run: the same seed gives the same result.",
        between=(0, MAX_SEED),
    )
    steps: int | None = option(
        None,
        help="Optimizer steps. If empty, the number of epochs decides; if that is empty too, the "
        "run ends when it gets no better (Stop when no better).",
        between=(1, MAX_STEPS),
    )
    epochs: int | None = option(
        None,
        help="Passes over all images, where no number of steps is given. Empty: 100, or as many as "
        "make it better, where Stop when no better is set.",
        between=(1, 1_000_000),
    )
    batch_size: int = option(
        1,
        help="Instance images per batch. With prior preservation as many class images are added.",
        between=(1, 1024),
    )
    gradient_accumulation_steps: int = advanced(
        1,
        help="""Batches whose gradients are added up for one optimizer step: a larger batch without
        more memory.""",
        between=(1, 1024),
        aliases=("accumulation",),
    )
    device: str = advanced(
        "auto",
        help="auto takes a GPU where there is one; otherwise cuda, cuda:1, mps, xpu or cpu.",
    )
    mixed_precision: str = option(
        "no",
        help="""bf16 or fp16 save memory and time on a GPU; trained weights stay in fp32.
        full_bf16 keeps those in bf16 too, which wants optim.stochastic_rounding.""",
        choices=PRECISIONS,
    )
    stop_when: int | None = option(
        None,
        label="Stop when no better",
        help="""Ends the run after so many saves in a row whose loss on held-out images was no lower
        than the best one's. Empty: never.""",
        between=(1, 10_000),
    )
    sharding: str = advanced(
        "no",
        help="""With several processes: no gives each a whole model (DDP), full cuts the denoising
        network into a piece for each (FSDP2), offload keeps the pieces in RAM besides.""",
        choices=SHARDINGS,
    )
    resume: str = option(
        "",
        label="Resume from",
        help='The checkpoint of this run to resume from: "latest", a step number, or empty.',
    )
    presets: dict[str, str] = advanced(
        factory=dict,
        help="The presets that this configuration was built on, with their versions.",
    )


@dataclass
class SaveOptions:
    """What is written to disk."""

    every_minutes: float | None = option(
        5.0,
        label="Resume state every … minutes",
        help="How often the training state is saved, so that the run can be resumed whatever "
        "happens. Each replaces the one before, and saving takes at most a twentieth of the time. "
        "Empty: never.",
        between=(0.01, 1_000_000),
    )
    every_steps: int | None = option(
        None,
        label="Checkpoint every … steps",
        help="How often a checkpoint is saved that is kept, with the result so far. Empty: never.",
        between=(1, MAX_STEPS),
    )
    every_epochs: int | None = advanced(
        None,
        label="Checkpoint every … epochs",
        help="The same in epochs.",
        between=(1, 1_000_000),
    )
    first_step: int = advanced(
        0,
        label="First checkpoint",
        help="No checkpoint is written before this step.",
        between=(0, MAX_STEPS),
    )
    at_end: bool = advanced(
        False,
        label="Checkpoint at the end",
        help="""Save a checkpoint after the last step too, so that a finished run can be trained
        further.""",
    )
    best: bool = option(
        False,
        label="Mark the best step",
        help="""At every save and at the end, measures the loss on images that are held out from
        training, always with the same noise. The result of the step with the lowest is kept as
        <name>-best too.""",
    )
    best_by: str = advanced(
        "loss",
        help="""loss: the loss on held-out images. images: a few are drawn at each save, and CLIP
        and DINO on this machine (or the base's own encoders) compare them with the real ones: the
        subject as alike as can be while prompt and class stay near the base's.""",
        choices=("loss", "images"),
    )
    best_images: int = advanced(
        8,
        label="Images to judge by",
        help="""Best by images: about how many of the subject are drawn at each save, and as many
        of the class (8 to 50). More take longer, and chance counts less.""",
        between=(2, 50),
    )
    full_steps: str = advanced(
        "both",
        label="Full results on the way",
        help="""What a full fine-tune leaves at each save before the end: a folder in diffusers'
        layout, the file that hosts load, or both. Both take twice the disk. At the end both are
        written.""",
        choices=("both", "folder", "file"),
    )
    keep: int | None = option(
        None,
        label="Checkpoints to keep",
        help="The oldest are deleted beyond this number, and the results saved with them; empty "
        "keeps all. The final result always stays.",
        between=(1, 1_000_000),
    )
    layout: str = advanced(
        "host",
        label="Adapter key layout",
        help="host: what most hosts load for the family; diffusers and peft are for scripts.",
        choices=LAYOUTS,
    )
    arrangement: str = advanced(
        "run",
        label="Result layout",
        help="""The folder layout of results: run, as the hosts load them; diffusers, peft or
        shivam, as code written for the training scripts of that name expects them.""",
        choices=ARRANGEMENTS,
    )
    also_kohya: bool = advanced(
        False,
        label="Kohya file too",
        help="In diffusers' layout, write an adapter with kohya's key names as well.",
    )
    precision: str = advanced(
        "fp16",
        label="Precision of results",
        help="Number format of the saved files.",
        choices=("fp32", "fp16", "bf16"),
    )


@dataclass
class ValidationOptions:
    """Images generated during the run, always from the same seeds, to watch its progress."""

    prompts: list[str] = option(
        factory=list, help="One image for each prompt, each time. Empty: none are generated."
    )
    negative_prompt: str = option("", help="What the images should not show.")
    every_steps: int | None = option(
        None,
        label="Every … steps",
        help="How often validation images are generated.",
        between=(1, MAX_STEPS),
    )
    every_epochs: int | None = advanced(
        None,
        label="Every … epochs",
        help="The same in epochs.",
        between=(1, 1_000_000),
    )
    images: int = option(
        1, label="Images per prompt", help="With seeds that count up.", between=(1, 64)
    )
    seed: int = option(0, help="Seed of the first image.", between=(0, MAX_SEED))
    num_inference_steps: int = option(
        25,
        label="Sampling steps",
        help="Denoising steps for one image.",
        between=(1, 1000),
        aliases=("steps",),
    )
    guidance_scale: float = option(
        7.0,
        label="Guidance scale (CFG)",
        help="How strictly the prompt is followed.",
        between=(0.0, 50),
        aliases=("guidance",),
    )
    scheduler: str = advanced(
        "ddim",
        label="Sampler",
        help="Sampling method of the images.",
        choices=SCHEDULERS,
    )
    like: str = advanced(
        "none",
        label="Images of a host",
        help="""a1111, comfyui: the very image that this host makes of prompt, seed, steps and CFG,
        with its noise and noise levels. For Stable Diffusion 1, 2 and XL; ddim, euler or dpm++.""",
        choices=("none", "a1111", "comfyui"),
    )
    size: int | None = advanced(
        None,
        help="Side in pixels; the training resolution if empty.",
        between=(8, 4096),
    )


@dataclass
class LogOptions:
    """Where metrics are logged."""

    tensorboard: bool = option(
        True, label="TensorBoard", help="Log metrics and images for TensorBoard into logs/."
    )
    wandb: bool = option(
        False,
        label="Weights & Biases",
        help="Log metrics and images to Weights & Biases. Needs the package wandb and its login.",
    )
    project: str = advanced(
        "dreambooth",
        label="W&B project",
        help="The project at Weights & Biases that runs are listed under.",
    )
    folder: str = advanced(
        "",
        label="TensorBoard folder",
        help="Where metrics are written, relative to the run's folder. Empty: logs.",
    )
    every_steps: int = advanced(
        1,
        label="Progress every … steps",
        help="How often progress is reported; loss is averaged over that many steps.",
        between=(1, MAX_STEPS),
    )


@dataclass
class PublishOptions:
    """Publishing the result on the Hugging Face hub. The token is in ``HF_TOKEN``."""

    repository: str = option(
        "", help="Name on the hub, as owner/name. Empty: nothing is published."
    )
    private: bool = option(True, help="Only you see the repository.")
    licence: str = option(
        "", help="Licence of the result by the hub's name; the base's own may prescribe it."
    )
    consent: str = option(
        "", help="Who agreed that the subject is trained and published; goes into the model card."
    )
