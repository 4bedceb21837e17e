"""What a worker can be doing, as its progress events name it, in words for people."""

from __future__ import annotations

STAGES: dict[str, str] = {
    "queue": "waiting in the queue",
    "starting": "starting the training engine",
    "loading": "loading the base model",
    "class_images": "making class images",
    "latents": "encoding images",
    "texts": "encoding captions",
    "compiling": "compiling the denoiser",
    "answers": "asking the base what to preserve",
    "attention": "trying attention kernels",
    "train": "training",
    "samples": "making sample images",
    "saving": "saving",
    "proof": "checking the saved file",
    "disk_full": "the disk is full: waiting for room",
}


def stage_words(stage: str) -> str:
    """The words for a stage; one that is not known is told by its own name."""
    return STAGES.get(stage, stage.replace("_", " "))
