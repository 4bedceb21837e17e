"""What a dialect is, and the flags that most of them have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Defaults = dict[str, Any]


@dataclass(frozen=True)
class Dialect:
    """One script as one project has it."""

    script: str
    name: str
    defaults: Mapping[str, Any]
    """Every flag that it has, with its default."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Configuration keys that hold whatever the flags say."""
    run_folder: str = ""
    """Where in the output folder the run's own files lie; empty for the folder itself."""

    @property
    def whose(self) -> str:
        """The name as an owner."""
        return f"{self.name}'" if self.name.endswith("s") else f"{self.name}'s"


COMMON: Defaults = {
    "pretrained_model_name_or_path": None,
    "tokenizer_name": None,
    "instance_data_dir": None,
    "class_data_dir": None,
    "instance_prompt": None,
    "class_prompt": None,
    "with_prior_preservation": False,
    "prior_loss_weight": 1.0,
    "num_class_images": 100,
    "seed": None,
    "resolution": 512,
    "center_crop": False,
    "train_text_encoder": False,
    "train_batch_size": 4,
    "sample_batch_size": 4,
    "num_train_epochs": 1,
    "max_train_steps": None,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "learning_rate": 5e-6,
    "scale_lr": False,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 500,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "push_to_hub": False,
    "hub_token": None,
    "hub_model_id": None,
    "hub_licence": None,
    "hub_consent": None,
    "logging_dir": "logs",
}
"""What every one of them has, and two flags of our own: what publishing needs to know."""

TORCH: Defaults = {
    "revision": None,
    "use_8bit_adam": False,
    "mixed_precision": None,
    "local_rank": -1,
}
"""What those for PyTorch have."""

NEWER: Defaults = {
    "checkpointing_steps": 500,
    "lr_num_cycles": 1,
    "lr_power": 1.0,
    "report_to": "tensorboard",
    "enable_xformers_memory_efficient_attention": False,
}
"""What those have that were written after the end of 2022."""

HUGGING_FACE: Defaults = {
    **COMMON,
    **TORCH,
    **NEWER,
    "variant": None,
    "checkpoints_total_limit": None,
    "resume_from_checkpoint": None,
    "dataloader_num_workers": 0,
    "allow_tf32": False,
    "prior_generation_precision": None,
    "validation_prompt": None,
    "num_validation_images": 4,
}
"""What diffusers' own have."""

PLAIN: Defaults = {
    "data.captions": "prompt",
    "data.subfolders": False,
    "save.precision": "fp32",
    "save.arrangement": "diffusers",
    "validation.num_inference_steps": 25,
    "validation.guidance_scale": 7.5,
    "validation.scheduler": "dpm++",
}
"""How they all take images, make images and write results."""
