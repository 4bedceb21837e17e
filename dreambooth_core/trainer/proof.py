"""Proof on save: what was written is read back by other code and compared with the trainer.

It runs after the trainer has freed its memory, is part of the result, and stands in the receipt.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreambooth_core.attention.processors import apply_attention
from dreambooth_core.devices import STORED
from dreambooth_core.disk import sha256
from dreambooth_core.errors import TrainingFailed
from dreambooth_core.families.base import SizeInfo
from dreambooth_core.families.components import Components
from dreambooth_core.families.loading import load_base
from dreambooth_core.families.options import BaseOptions
from dreambooth_core.families.tokens import add_token
from dreambooth_core.formats.adapters.verify import Proof, verify_adapter
from dreambooth_core.formats.embeddings import read_embedding
from dreambooth_core.formats.fingerprint import fingerprint
from dreambooth_core.formats.folders import index_of
from dreambooth_core.formats.storage import read_tensors
from dreambooth_core.methods.quantized import dequantize, quantize
from dreambooth_core.options import TrainConfig
from dreambooth_core.randomness import generator
from dreambooth_core.trainer.placement import evaluating
from dreambooth_core.trainer.train import Training

SIDE = 16
"""Largest side of the question's latents: any size shows a difference."""

WHOLE = 2e-5
"""What a whole model's answer may differ by, as a share of the output. Both sides compute in fp32
on the CPU, with the very numbers that the file holds."""


def answer(parts: Components, caption: str) -> Tensor:
    """The denoiser's output for a fixed question, fp32 on the CPU."""
    scale = parts.latent_scale
    edge = min(parts.native_size // scale, SIDE) * scale
    shape = parts.family.latent_shape(parts.configs, edge, edge)
    parameter = next(parts.denoiser.parameters())
    noisy = torch.randn(1, *shape, generator=generator("proof", "latents"))
    inpainting = None
    if parts.is_inpainting:
        inpainting = torch.randn(1, 5, *shape[1:], generator=generator("proof", "inpainting"))
        inpainting = inpainting.to(parameter)
    with evaluating(parts.models.values()), ExitStack() as undo, torch.no_grad():
        for encoder in parts.text_encoders:
            undo.callback(encoder.to, next(encoder.parameters()).device)
            encoder.to(parameter.device)
        conditioning = parts.family.encode(parts, [caption])
        output = parts.family.predict(
            parts,
            noisy.to(parameter),
            torch.tensor([parts.family.middle_time(parts)], device=parameter.device),
            conditioning.to(device=parameter.device, dtype=parameter.dtype),
            [SizeInfo((edge, edge), (0, 0), (edge, edge))],
            inpainting,
        )
    return output.float().cpu()


def as_stored(parts: Components, dtype: torch.dtype) -> Components:
    """The models as a file in ``dtype`` holds them, in fp32 on the CPU, whatever they were trained
    in and with. Training cannot go on with them.
    """
    if parts.streaming:
        parts.streaming.close()
    for model in (*parts.models.values(), parts.vae):
        for module in model.modules():
            module._compiled_call_impl = None  # it was compiled for where the model was
        model.to("cpu").to(dtype).to(torch.float32)
    apply_attention(parts.denoiser, "auto", torch.device("cpu"), torch.float32)
    return parts


def sums_of(parts: Components) -> dict[str, int]:
    """A checksum of each tensor of a whole model, by network and name."""
    models = {**parts.models, "vae": parts.vae}
    return {
        f"{network}.{name}": zlib.crc32(tensor.detach().contiguous().numpy().data)
        for network, model in models.items()
        for name, tensor in model.named_parameters()
    }


@dataclass(frozen=True)
class Question:
    """What a result is asked, and what the models answered as they were trained: all that the proof
    needs of a run whose models have left the memory."""

    file: Path
    """An adapter's file or folder, or a whole model's single file or folder."""
    caption: str
    """What :func:`answer` was asked."""
    expected: Tensor
    """The answer; of a whole model, as it is stored (:func:`as_stored`)."""
    dtype: torch.dtype
    """The precision that the models computed in."""
    token: tuple[str, Path] | None = None
    """A learned token and the file with its vectors."""
    sums: Mapping[str, int] = field(default_factory=dict)
    """Of a whole model, what :func:`sums_of` gave for it as it is stored."""
    masters: Collection[str] = ()
    """Networks that were trained whole from unrounded weights."""
    tokenizers: list[Any] | None = None
    """The base's, where training added nothing to them; None reads them again."""
    base: Components | None = None
    """The base as it was trained on, where it is still in the memory, to the bit; else it is read
    again, which takes most of a proof's time."""


def release(training: Training) -> Components | None:
    """The run's base as it was before training, to the bit; training is over then. None where
    there is none any more, or not as it was."""
    if not training.untouched or not training.method.detach():
        return None
    models = training.parts.models.values()
    return training.parts if fingerprint(*models) == training.untouched else None


def ask(training: Training, file: Path, token: tuple[str, Path] | None) -> Question:
    """The question to a result, answered by the trained models. Training cannot go on then."""
    parts, method, precision = training.parts, training.method, training.precision
    caption = method.caption_for_proof(list(training.items.first_captions().values()))
    sums: dict[str, int] = {}
    with training.trained.as_result(whole=True):
        if method.adapter() is None and token is None:  # a whole model
            sums = sums_of(as_stored(parts, STORED[training.config.save.precision]))
        # Where large changes cancel each other, rounding alone moves the output far.
        method.round_to(STORED[training.config.save.precision])
        expected = answer(parts, caption)
    masters = bool(sums) and precision.trained != precision.dtype
    base = release(training)
    return Question(
        file,
        caption,
        expected,
        precision.dtype,
        token,
        sums,
        tuple(method.trained_models) if masters else (),
        parts.tokenizers if token is None else None,
        base,
    )


def prove(question: Question, config: TrainConfig, checkpoint: int | None = None) -> dict[str, Any]:
    """Reads a result back and compares its answer with the trainer's own.

    Args:
        question: what it is asked, and the answer.
        config: the run's.
        checkpoint: the step of the latest checkpoint, if there is one.

    Returns:
        The proof, for the receipt.

    Raises:
        TrainingFailed: the file does not do what was trained, equals the base, or holds NaN.
    """
    file, caption, expected = question.file, question.caption, question.expected
    dtype, token, quantized = question.dtype, question.token, config.memory.quantize
    folder = file if file.is_dir() else file.with_suffix("")
    whole = index_of(folder).is_file()
    parts = question.base or load_base(config.base, tokenizers=question.tokenizers)
    for name, model in parts.models.items() if question.base is None else ():
        if name not in question.masters:
            model.to(dtype)
        if quantized != "no":
            # The rounded base as ordinary layers, which any loader can put an adapter on.
            quantize(model, quantized, parts.family.whole_in(name))
            dequantize(model)
    if token is not None:
        word, place = token
        plain = answer(parts, caption)
        add_token(parts, word, read_embedding(place).rows)
    if token is not None and token[1] == file:
        tolerance = WHOLE if dtype == torch.float32 else 5e-3
        actual = answer(parts, caption)
        proof = _compared("embedding", question, file, plain, actual, tolerance)
    elif whole:
        plain = answer(as_stored(parts, STORED[config.save.precision]), caption)
        proof = _verify_model(question, folder, plain, parts.family.denoiser, config.base.guidance)
    else:
        proof = verify_adapter(file, parts.models, lambda _: answer(parts, caption), expected)
    if not proof.passed:
        raise TrainingFailed(
            f"the saved file is not what was trained: {'; '.join(proof.problems)}",
            where=file,
            do=(
                "`dreambooth inspect` shows the file. "
                + (
                    "There is no checkpoint to save it from again: train anew."
                    if checkpoint is None
                    else f"run.resume={checkpoint} saves it again from the checkpoint of that step."
                )
            ),
        )
    return proof.as_dict()


def _compared(
    reader: str,
    question: Question,
    weights: Path,
    plain: Tensor,
    actual: Tensor,
    tolerance: float,
    problems: Sequence[str] = (),
) -> Proof:
    """The proof of a file by the answers of the base and of what was read back.

    Args:
        weights: the file that they are in.
        problems: what was found out already.
    """
    expected, found = question.expected, [*problems]
    size = float(expected.norm())
    difference = float((actual - expected).norm()) / size
    effect = float((expected - plain).norm()) / size
    if not difference <= tolerance:
        found.append(f"the output differs by {difference:.2e}, allowed is {tolerance:.2e}")
    if effect == 0.0 or float((actual - plain).norm()) == 0.0:
        found.append("it equals its base")
    hashes = {weights.relative_to(question.file.parent).as_posix(): sha256(weights)}
    return Proof(not found, reader, difference, tolerance, effect, hashes, tuple(found))


def _verify_model(
    question: Question, folder: Path, plain: Tensor, denoiser: str, guidance: float
) -> Proof:
    """Reads a whole model through diffusers' own loader: every tensor must be what was trained,
    to the bit, and so must the answer be, but for the order of additions."""
    file = question.file
    weights = file if file.is_file() else next((file / denoiser).glob("*.safetensors"))
    damaged = [
        name
        for name, tensor in read_tensors(weights).items()
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    problems = [f"{len(damaged)} tensors have NaN, the first is {damaged[0]}"] if damaged else []
    read = _through_diffusers(file, folder, guidance)
    actual, found = answer(read, question.caption), sums_of(read)
    changed = [name for name, value in question.sums.items() if found.get(name) != value]
    if changed:
        problems.append(f"{len(changed)} tensors are not as they were, the first is {changed[0]}")
    return _compared("diffusers", question, weights, plain, actual, WHOLE, problems)


def _through_diffusers(file: Path, folder: Path, guidance: float) -> Components:
    """The model in ``file`` as diffusers reads it; ``folder`` only tells the configuration."""
    parts = load_base(BaseOptions(model=str(folder), guidance=guidance))
    kind = parts.family.pipeline_class(parts)
    common: dict[str, Any] = {"local_files_only": True, "torch_dtype": torch.float32}
    if file.is_file():
        pipeline = kind.from_single_file(
            str(file), config=str(folder), safety_checker=None, **common
        )
    else:
        pipeline = kind.from_pretrained(str(folder), **common)
    parts.denoiser = getattr(pipeline, parts.family.denoiser)
    parts.text_encoders = [getattr(pipeline, name) for name in parts.family.text_encoders]
    parts.vae = pipeline.vae
    return parts
