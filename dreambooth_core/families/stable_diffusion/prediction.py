"""What a UNet answers, noise or velocity: found where a file says it, never guessed.

A wrong guess gives a model that trains and samples into mud, so where an SD2 file says
nothing the person is asked.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.parts import FLOW, PREDICTIONS

_SPELLINGS = {
    word: kind
    for kind, words in {
        "epsilon": ("epsilon", "eps", "noise"),
        "v_prediction": ("v", "v_prediction", "v-prediction", "vpred", "velocity"),
        "sample": ("sample", "x0"),
        FLOW: ("flow", FLOW, "rectified_flow"),
    }.items()
    for word in words
}

FLOW_NAME = "rectified"
"""Forge Neo takes an SDXL for one of rectified flow where its path has this word; no host looks
into the file for it."""

# Training steps that Stability's own SD2 files carry: 2.0-base, and 2.1 at 768 pixels.
_KNOWN_STEPS = {875000: "epsilon", 110000: "v_prediction"}

_PROBE = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
_PROBE_LIMIT = 0.09
"""ComfyUI takes an SD2 UNet for a v model when this bias spreads wider than this."""


def spelled(value: str) -> str:
    """A prediction type in diffusers' words. Raises ``UserError`` for an unknown word."""
    found = _SPELLINGS.get(value.strip().lower())
    if found is None:
        raise UserError(
            f"unknown prediction type {value!r}", do=f"Choose one of {', '.join(PREDICTIONS)}"
        )
    return found


def from_metadata(metadata: Mapping[str, str]) -> str | None:
    """The prediction type that a file's metadata gives, or ``None``."""
    value = metadata.get("modelspec.prediction_type", "").strip().lower()
    if value in _SPELLINGS:
        return _SPELLINGS[value]
    if metadata.get("ss_v_parameterization", "").lower() == "true":
        return "v_prediction"
    if metadata.get("modelspec.architecture", "").startswith("stable-diffusion-v2-768-v"):
        return "v_prediction"
    return None


def find(
    family: str,
    tensors: Mapping[str, torch.Tensor],
    *,
    asked: str | None = None,
    yaml: str | None = None,
    metadata: Mapping[str, str] | None = None,
    global_step: int | None = None,
    name: str = "",
) -> str:
    """The prediction type of a single file.

    In order: what the person said, the yaml, marker keys, metadata, the file's name (rectified
    flow, as Forge Neo), the training steps of Stability's own files, the family where it leaves no
    choice.

    Raises:
        UserError: an SD2 file says nothing, and nobody said it.
    """
    if asked:
        return spelled(asked)
    if yaml:
        return yaml
    if "v_pred" in tensors:
        return "v_prediction"
    said = from_metadata(metadata or {})
    if said:
        return said
    if family == "sdxl" and FLOW_NAME in name.lower():
        return FLOW
    if family != "sd2":
        return "epsilon"
    if global_step in _KNOWN_STEPS:
        return _KNOWN_STEPS[global_step]
    stem = tensors.get("model.diffusion_model.input_blocks.0.0.weight")
    if stem is not None and stem.shape[1] != 4:
        return "epsilon"  # SD2's inpainting and depth models; the v models have 4 channels
    raise UserError(
        "this SD2 model does not say whether it predicts noise or velocity",
        do="Give --prediction_type epsilon (2.x base) or --prediction_type v_prediction "
        f"(2.x at 768){_hint(tensors)}",
    )


def _hint(tensors: Mapping[str, torch.Tensor]) -> str:
    probe = tensors.get(_PROBE)
    if probe is None or probe.device.type == "meta":
        return ""
    spread = probe.float().std(correction=0).item()
    return f"; its weights look like {'v_prediction' if spread > _PROBE_LIMIT else 'epsilon'}"


def markers(prediction_type: str, *, zero_terminal_snr: bool) -> dict[str, torch.Tensor]:
    """The empty tensors by which ComfyUI, Forge and A1111 know a v model and its schedule."""
    said = {"v_pred": prediction_type == "v_prediction", "ztsnr": zero_terminal_snr}
    return {name: torch.tensor([]) for name, true in said.items() if true}
