"""What this machine can do, as far as flags ask for it."""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cached_property


class Machine:
    """Answers are found when they are first asked for: torch takes a second to import."""

    @property
    def forced_cpu(self) -> bool:
        """Whether ``accelerate launch --cpu`` or its configuration says so."""
        return os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")

    @property
    def launched_precision(self) -> str | None:
        """What ``accelerate launch`` or its ``default_config.yaml`` says of mixed precision."""
        found = os.environ.get("ACCELERATE_MIXED_PRECISION", "")
        return found if found in ("no", "fp16", "bf16") else None

    @property
    def processes(self) -> int:
        """How many processes the launcher has started."""
        return int(os.environ.get("WORLD_SIZE") or 1)

    @cached_property
    def device(self) -> str:
        """``cuda``, ``xpu``, ``mps`` or ``cpu``."""
        if self.forced_cpu:
            return "cpu"
        from dreambooth_core.devices import choose_device

        return choose_device("auto").type

    def refuses_precision(self, name: str) -> str:
        """Why this machine cannot train in that precision, or nothing."""
        if name == "fp16" and self.device == "cpu":
            return "fp16 needs a GPU"
        if name == "bf16" and self.device == "cuda":
            import torch

            return "" if torch.cuda.is_bf16_supported() else "this GPU does not compute in bf16"
        return ""

    @cached_property
    def refuses_8bit(self) -> str:
        """Why 8-bit Adam does not work here, or nothing."""
        if self.device == "mps":
            return "bitsandbytes has no kernels for Apple's GPUs"
        try:
            importlib.import_module("bitsandbytes.optim")
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            missing = isinstance(error, ModuleNotFoundError)
            return "bitsandbytes is not installed" if missing else f"bitsandbytes: {error}"
        return ""

    @cached_property
    def refuses_wandb(self) -> str:
        """Why curves cannot go to Weights & Biases, or nothing."""
        found = importlib.util.find_spec("wandb")
        return "" if found else "Weights & Biases is not installed (pip install wandb)"

    @cached_property
    def refuses_xformers(self) -> str:
        """Why xformers does not work here, or nothing."""
        import torch

        from dreambooth_core.attention.probe import probe

        device = torch.device(self.device)
        dtype = torch.float32 if device.type == "cpu" else torch.float16
        verdict = probe("xformers", device, dtype, 64)
        return "" if verdict.works else verdict.reason
