"""Options of the base: the model that training starts from."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.fields import advanced, option

SCHEDULERS = ("ddim", "euler", "euler_a", "dpm++", "unipc", "pndm")
"""The samplers of validation, class and other images; a family has its own under these names."""


@dataclass
class BaseOptions:
    """Which model to start from, and how to read it."""

    model: str = option(
        "pocket",
        label="Base model",
        help="""A diffusers folder, a single .safetensors or .ckpt file (of Z-Image, Flux and
        Chroma also the denoiser's alone, from diffusion_models or unet), a hub id such as
        owner/name, or "pocket" or "pocket-flow", the tiny models that come with this program.""",
    )
    text_encoders: list[str] = advanced(
        factory=list,
        help="""Files of the text encoders, where the base model is a file of the denoiser alone,
        as hosts keep them in text_encoders.""",
    )
    tokenizer: str | None = advanced(
        None,
        help="""Folder or hub id of the tokenizer, where the base model is a file of the denoiser:
        no such file holds one. ComfyUI keeps them in its folder comfy/text_encoders, Forge in
        backend/huggingface.""",
    )
    revision: str | None = advanced(None, help="Branch, tag or commit of a hub id.")
    variant: str | None = advanced(None, help="Variant of a hub id's files, such as fp16.")
    vae: str | None = advanced(
        None,
        label="VAE",
        help="""Another autoencoder than the base's own: a diffusers folder or a single file.
        Needed where the base model is a file of the denoiser alone.""",
    )
    prediction_type: str = advanced(
        "auto",
        help="""What the UNet predicts. "auto" reads it from the model; a single file of
        Stable Diffusion 2 may not say and must then be told here. "flow" trains and samples by
        rectified flow, as some models of SDXL do; "auto" knows them by "rectified" in the name.""",
        choices=("auto", "epsilon", "v_prediction", "sample", "flow"),
    )
    clip_skip: int = advanced(
        1,
        help="""Which layer of the text encoder conditions the UNet, counted as the WebUI
        does: 1 is the last layer, 2 the one before it.""",
        between=(1, 12),
    )
    guidance: float = advanced(
        1.0,
        label="Guidance in training",
        help="""What a base distilled to guidance (Flux.1 dev, Flux.2 dev) is told in training. At
        1 its answer is that of plain flow, which images are examples of. Validation images have
        their own guidance.""",
        between=(0.0, 100.0),
    )
    max_prompt_chunks: int = advanced(
        3,
        label="Longest prompt",
        help="""Prompts longer than 75 tokens are encoded in chunks of 75, as both hosts do;
        this is the most chunks that are used, the rest of the prompt is cut with a warning.""",
        between=(1, 10),
    )
