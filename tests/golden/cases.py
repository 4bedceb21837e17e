"""What the golden file holds: one short run for each family, method and option of weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

METHODS = ("lora", "dora", "loha", "lokr", "oft", "textual_inversion", "pivotal", "full")
FAMILIES = ("sd1", "sd2", "sdxl")
QUICK = {
    "sd1 lora",
    "sd1 pivotal",
    "sd2-v full",
    "sdxl dora",
    "prior, accumulation and clipping",
    "masks and buckets",
}
"""Those that the suite runs: one of each kind of thing, some seconds together."""


@dataclass(frozen=True)
class Case:
    """A run: which reduced base, and what differs from the plain configuration."""

    name: str
    base: str = "sd1"
    changes: dict[str, Any] = field(default_factory=dict)
    """``section__field`` to value."""


def _methods() -> list[Case]:
    cases = []
    for base in (*FAMILIES, "sd2-v"):
        for method in METHODS if base in FAMILIES else ("lora", "full"):
            rate = {"full": 1e-4, "oft": 1e-3}.get(method, 1e-2)
            changes = {"method__kind": method, "optim__learning_rate": rate}
            cases.append(Case(f"{base} {method}", base, changes))
    inpainting = [Case(f"{base}-inpainting lora", f"{base}-inpainting") for base in FAMILIES]
    return [*cases, *inpainting]


WITH_PRIOR = {"prior__enabled": "true", "prior__num_class_images": 3}
MASKED = {"data__crop": "bucket", "data__masks": "alpha", "data__captions": "files"}

OPTIONS: dict[str, dict[str, Any]] = {
    # objective
    "min-SNR": {"objective__weighting": "min_snr"},
    "debiased": {"objective__weighting": "debiased_estimation"},
    "v-equivalent": {"objective__weighting": "v_equivalent"},
    "huber by noise": {"objective__loss": "huber", "objective__huber_schedule": "snr"},
    "smooth L1": {"objective__loss": "smooth_l1"},
    "l1": {"objective__loss": "l1"},
    "offset noise": {"objective__noise_offset": 0.1},
    "pyramid noise": {"objective__multires_noise_discount": 0.3},
    "input perturbation": {"objective__ip_noise_gamma": 0.1},
    "timesteps between": {"objective__min_timestep": 200, "objective__max_timestep": 700},
    "cubic timesteps": {"objective__timestep_bias": "cubic"},
    "logit-normal timesteps": {"objective__timestep_bias": "logit_normal"},
    # data
    "prior preservation": {**WITH_PRIOR, "prior__loss_weight": 0.5},
    "prior, accumulation and clipping": {
        **WITH_PRIOR,
        "run__batch_size": 1,
        "run__gradient_accumulation_steps": 3,
        "optim__max_grad_norm": 0.01,
    },
    "masks and buckets": MASKED,
    "unmasked weight": {
        **MASKED,
        "data__unmasked_weight": 0.25,
        "run__gradient_accumulation_steps": 2,
    },
    "random crops and mirroring": {"data__crop": "random", "data__flip": "true"},
    "latents anew each step": {"data__cache": "none"},
    "shuffled tags": {"data__captions": "files", "data__shuffle_caption": "true"},
    "caption dropout": {"data__caption_dropout_rate": 0.5},
    # method
    "no UNet": {"method__train_denoiser": "false"},
    "all layers": {"method__target_modules": "all"},
    "dropout": {"method__dropout": 0.3},
    "text rank": {"method__text_rank": 2, "optim__text_encoder_lr": 5e-3},
    "clip skip": {"base__clip_skip": 2},
    "nf4": {"memory__quantize": "nf4"},
    "int8": {"memory__quantize": "int8"},
    "checkpointing": {"memory__gradient_checkpointing": "true"},
    "chunked attention": {"memory__attention": "chunked"},
    # optimizer
    "EMA": {"optim__ema__enabled": "true", "optim__ema__decay": 0.9},
    "fused backward": {
        "method__kind": "full",
        "optim__fused_backward_pass": "true",
        "optim__max_grad_norm": 0,
        "optim__learning_rate": 1e-4,
    },
    "stochastic rounding": {
        "method__kind": "full",
        "run__mixed_precision": "full_bf16",
        "optim__stochastic_rounding": "true",
        "optim__learning_rate": 1e-3,
    },
    "bf16": {"run__mixed_precision": "bf16"},
    "scaled rate": {"optim__scale_lr": "true", "run__gradient_accumulation_steps": 2},
    "polynomial": {"optim__lr_scheduler": "polynomial", "optim__lr_power": 2},
    "cosine with warm-up": {"optim__lr_scheduler": "cosine", "optim__lr_warmup_steps": 2},
    "restarts": {"optim__lr_scheduler": "cosine_with_restarts", "optim__lr_num_cycles": 2},
    "piecewise": {"optim__lr_scheduler": "piecewise_constant", "optim__step_rules": "1:2,0.1"},
    **{
        name: {"optim__optimizer": name}
        for name in (
            "adam",
            "sgd",
            "lion",
            "adamw8bit",
            "adafactor",
            "prodigy",
            "adamw_schedulefree",
        )
    },
}


def cases() -> list[Case]:
    """Every case, with names of their own."""
    options = []
    for name, changes in OPTIONS.items():
        full = changes.get("method__kind") == "full"
        text = {} if full else {"method__train_text_encoder": "true"}
        options.append(Case(name, changes={**text, **changes}))
    terminal = Case("zero terminal SNR", "sd2-v", {"objective__zero_terminal_snr": "true"})
    return [*_methods(), terminal, *options]
