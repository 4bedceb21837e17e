"""Keeps libraries from talking over the program: their notes are for developers."""

from __future__ import annotations

import importlib
import logging
import os
import warnings

_TALKATIVE = ("bitsandbytes", "transformers", "diffusers", "huggingface_hub", "tensorboard")


def quieten() -> None:
    """Only errors of the libraries get through, and their progress bars stay away.

    Call it before the libraries are imported; it imports none itself.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|peft|diffusers)\.")


def quieten_loading() -> None:
    """Hides transformers' bars while weights are loaded; imports transformers."""
    logger = importlib.import_module("transformers.utils.logging")
    logger.disable_progress_bar()
