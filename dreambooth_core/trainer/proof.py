"""Proof on save: what was written is read back by other code and compared with the trainer.

It runs after the trainer has freed its memory, is part of the result, and stands in the receipt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.errors import TrainingFailed
from dreambooth_core.families.base import Components, SizeInfo
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.tokens import add_token
from dreambooth_core.formats.adapters.verify import Proof, verify_adapter
from dreambooth_core.formats.embeddings import read_embedding
from dreambooth_core.formats.storage import read_tensors, sha256
from dreambooth_core.methods.quantized import dequantize, quantize
from dreambooth_core.randomness import generator

SIDE = 16
"""Largest side of the question's latents: any size shows a difference."""

STORED = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 5e-2}
"""What rounding a whole model to the file's precision may cost, as a share of the output."""


def answer(parts: Components, caption: str) -> Tensor:
    """The UNet's output ``[1, 4, h, w]`` for a fixed question, fp32 on the CPU."""
    unet = parts.unet
    side = min(int(unet.config.sample_size or SIDE), SIDE)
    parameter = next(unet.parameters())
    noisy = torch.randn(1, 4, side, side, generator=generator("proof", "latents"))
    inpainting = None
    if parts.is_inpainting:
        inpainting = torch.randn(1, 5, side, side, generator=generator("proof", "inpainting"))
        inpainting = inpainting.to(parameter)
    pixels = (side * parts.latent_scale,) * 2
    modes = {model: model.training for model in parts.models.values()}
    homes = {encoder: next(encoder.parameters()).device for encoder in parts.text_encoders}
    try:
        for model in modes:
            model.eval()
        for encoder in homes:
            encoder.to(parameter.device)
        with torch.no_grad():
            conditioning = parts.family.encode(parts, [caption])
            output = parts.family.predict(
                parts,
                noisy.to(parameter),
                torch.tensor([500], device=parameter.device),
                conditioning.to(device=parameter.device, dtype=parameter.dtype),
                [SizeInfo(pixels, (0, 0), pixels)],
                inpainting,
            )
    finally:
        for model, mode in modes.items():
            model.train(mode)
        for encoder, home in homes.items():
            encoder.to(home)
    return output.float().cpu()


def prove(
    base: BaseOptions,
    file: Path,
    caption: str,
    expected: Tensor,
    dtype: torch.dtype,
    *,
    token: tuple[str, Path] | None = None,
    quantized: str = "no",
    tokenizers: list[Any] | None = None,
) -> dict[str, Any]:
    """Reads a result back and compares its answer with the trainer's own.

    Args:
        base: the base that training started from.
        file: the result: an adapter's file or folder, or a whole model's single file or folder.
        caption: what :func:`answer` was asked.
        expected: the answer of the models as they were trained.
        dtype: the precision that the models computed in.
        token: a learned token and the file with its vectors.
        quantized: how the base was rounded while it was trained on.
        tokenizers: the base's, where training added nothing to them; None reads them again.

    Returns:
        The proof, for the receipt.

    Raises:
        TrainingFailed: the file does not do what was trained, equals the base, or holds NaN.
    """
    folder = file if file.is_dir() else file.with_suffix("")
    whole = (folder / "model_index.json").is_file()
    parts = load_base(base, tokenizers=tokenizers)
    for model in parts.models.values():
        model.to(dtype)
        if quantized != "no":
            # The rounded base as ordinary layers, which any loader can put an adapter on.
            quantize(model, quantized)
            dequantize(model)
    if token is not None:
        word, place = token
        plain = answer(parts, caption)
        add_token(parts, word, read_embedding(place).rows)
    if token is not None and token[1] == file:
        proof = _verify_token(file, plain, answer(parts, caption), expected, dtype)
    elif whole:
        proof = _verify_model(file, folder, answer(parts, caption), caption, expected, dtype)
    else:
        proof = verify_adapter(file, parts.models, lambda _: answer(parts, caption), expected)
    if not proof.passed:
        raise TrainingFailed(
            f"the saved file is not what was trained: {'; '.join(proof.problems)}",
            where=file,
            do="Resume from a checkpoint and save again; `dreambooth inspect` shows the file.",
        )
    return proof.as_dict()


def _verify_token(
    file: Path, plain: Tensor, actual: Tensor, expected: Tensor, dtype: torch.dtype
) -> Proof:
    """A learned token, read back into a new base."""
    size = float(expected.norm())
    difference = float((actual - expected).norm()) / size
    effect = float((expected - plain).norm()) / size
    tolerance = 2e-5 if dtype == torch.float32 else 5e-3
    problems = []
    if not difference <= tolerance:
        problems.append(f"the output differs by {difference:.2e}, allowed is {tolerance:.2e}")
    if effect == 0.0:
        problems.append("it equals its base")
    return Proof(
        passed=not problems,
        reader="embedding",
        difference=difference,
        tolerance=tolerance,
        effect=effect,
        sha256={file.name: sha256(file)},
        problems=tuple(problems),
    )


def _verify_model(
    file: Path, folder: Path, plain: Tensor, caption: str, expected: Tensor, dtype: torch.dtype
) -> Proof:
    """Reads a whole model through diffusers' own loader."""
    weights = file if file.is_file() else next((file / "unet").glob("*.safetensors"))
    tensors = read_tensors(weights)
    stored = max((t.dtype for t in tensors.values() if t.is_floating_point()), key=_width)
    damaged = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    actual = answer(_through_diffusers(file, folder, dtype), caption)
    size = float(expected.norm())
    difference = float((actual - expected).norm()) / size
    effect = float((expected - plain).norm()) / size
    # A small change must show through the rounding: compared with the base in the same way.
    tolerance = STORED.get(stored, 1e-4) + (5e-3 if dtype != torch.float32 else 2e-5)
    problems = [f"{len(damaged)} tensors have NaN, the first is {damaged[0]}"] if damaged else []
    if not difference <= tolerance:
        problems.append(f"the output differs by {difference:.2e}, allowed is {tolerance:.2e}")
    if effect == 0.0 or float((actual - plain).norm()) == 0.0:
        problems.append("it equals its base")
    return Proof(
        passed=not problems,
        reader="diffusers",
        difference=difference,
        tolerance=tolerance,
        effect=effect,
        sha256={weights.relative_to(file.parent).as_posix(): sha256(weights)},
        problems=tuple(problems),
    )


def _width(dtype: torch.dtype) -> int:
    return dtype.itemsize


def _through_diffusers(file: Path, folder: Path, dtype: torch.dtype) -> Components:
    """The model in ``file`` as diffusers reads it; ``folder`` only tells the configuration."""
    parts = load_base(BaseOptions(model=str(folder)))
    kind = parts.family.pipeline_class(parts)
    common: dict[str, Any] = {"local_files_only": True, "torch_dtype": dtype}
    if file.is_file():
        pipeline = kind.from_single_file(
            str(file), config=str(folder), safety_checker=None, **common
        )
    else:
        pipeline = kind.from_pretrained(str(folder), **common)
    parts.unet = pipeline.unet
    parts.text_encoders = [pipeline.text_encoder]
    if len(parts.tokenizers) > 1:
        parts.text_encoders.append(pipeline.text_encoder_2)
    return parts
