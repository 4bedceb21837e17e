"""The sampler's configuration that a diffusers folder carries."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dreambooth_core.errors import UserError
from dreambooth_core.formats.checkpoints.parts import FLOW

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpm-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Short names, diffusers' classes and what each needs set for Stable Diffusion."""

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
}
"""The noise schedule of every Stable Diffusion 1, 2 and XL."""

_CARRIED = (
    *BETAS,
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "use_flow_sigmas",
    "flow_shift",
)

FLOW_SIGMAS: dict[str, Any] = {"prediction_type": FLOW, "use_flow_sigmas": True}
FLOW_SHIFT = 3.0
"""Of a UNet of rectified flow that says nothing: SD3's, and what those who train SDXL so advise
(3 to 8)."""


def default_scheduler(
    family: str, prediction_type: str, *, zero_terminal_snr: bool = False
) -> dict[str, Any]:
    """The scheduler that a family's folders come with: PNDM, DDIM for v-prediction, Euler for XL.
    Of rectified flow DPM-Solver++, for which Stable Diffusion's pipelines need no change.

    With a zero terminal SNR the last timestep must be sampled, hence ``trailing`` (Lin et al.,
    arXiv 2305.08891, section 3.3).
    """
    if prediction_type == FLOW:
        return with_scheduler({**FLOW_SIGMAS, "flow_shift": FLOW_SHIFT}, "dpm")
    base = {**BETAS, "prediction_type": prediction_type, "steps_offset": 1}
    base["timestep_spacing"] = "leading"
    if zero_terminal_snr:
        base |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    name = "euler" if family.startswith("sdxl") else "pndm"
    if name == "pndm" and (zero_terminal_snr or prediction_type != "epsilon"):
        name = "ddim"
    return with_scheduler(base, name)


def with_scheduler(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same noise schedule under another sampler.

    Args:
        config: a diffusers scheduler configuration.
        name: one of :data:`SCHEDULERS`, or a diffusers class name.

    Raises:
        UserError: no such scheduler, or it cannot do zero terminal SNR where the model needs it.
    """
    import diffusers

    classes = dict(SCHEDULERS.values())
    kind, extra = SCHEDULERS.get(name, (name, classes.get(name, {})))

    def options(kind: str) -> Mapping[str, Any]:
        return inspect.signature(getattr(diffusers, kind).__init__).parameters

    if not hasattr(diffusers, kind) or not kind.endswith("Scheduler"):
        raise UserError(
            f"no scheduler is called {name!r}", do=f"Choose one of {', '.join(SCHEDULERS)}"
        )
    known = options(kind)
    carried = {key: config[key] for key in _CARRIED if key in config}
    if carried.get("use_flow_sigmas") and "use_flow_sigmas" not in known:
        raise UserError(
            f"{name} cannot sample a model of rectified flow", do="Choose one of dpm, deis, unipc"
        )
    if carried.get("rescale_betas_zero_snr") and "rescale_betas_zero_snr" not in known:
        able = [
            short for short, (k, _) in SCHEDULERS.items() if "rescale_betas_zero_snr" in options(k)
        ]
        raise UserError(
            f"{name} cannot sample a model with zero terminal SNR",
            do=f"Choose one of {', '.join(able)}",
        )
    values = {key: value for key, value in {**carried, **extra}.items() if key in known}
    return {"_class_name": kind, "_diffusers_version": diffusers.__version__, **values}
